"""Guards an API without a token from web pages: only its own may change things."""

import re
from collections.abc import Callable
from typing import Final

from fastapi import Request

from deployments.api.errors import FOREIGN_NAME, FOREIGN_PAGE, ApiError

_LOCAL_NAMES: Final = ("localhost", "127.0.0.1", "[::1]")
_READING: Final = frozenset({"GET", "HEAD", "OPTIONS"})
_OWN_PAGES: Final = frozenset({None, "same-origin", "none"})
"""`Sec-Fetch-Site` of a request by the API's own pages, by hand, or by what is no browser."""


def browser_guard(host: str) -> Callable[[Request], ApiError | None]:
    """Return a function that says why a request is refused, None for one that is not.

    A page of another site may read (its browser keeps the answer from it), but start and cancel
    nothing. A page that has turned its own name into one for this machine (DNS rebinding) counts
    as the API's own to a browser, so that only the names that are meant to be used are answered.

    Args:
        host: where the API listens.
    """
    names = "|".join(map(re.escape, (*_LOCAL_NAMES, host)))
    known_name = re.compile(rf"(?:{names})(?::\d+)?", re.IGNORECASE)

    def refusal(request: Request) -> ApiError | None:
        if not known_name.fullmatch(request.headers.get("Host", "")):
            return FOREIGN_NAME
        if request.method not in _READING and _is_of_foreign_page(request):
            return FOREIGN_PAGE
        return None

    return refusal


def _is_of_foreign_page(request: Request) -> bool:
    if request.headers.get("Sec-Fetch-Site") not in _OWN_PAGES:
        return True
    origin = request.headers.get("Origin")
    return origin is not None and _address(origin) != request.headers["Host"].lower()


def _address(origin: str) -> str:
    return origin.lower().partition("://")[2]
