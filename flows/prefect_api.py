"""The Prefect API as an operator meets it: is there one, and why it does not do what is asked."""

from http import HTTPStatus
from typing import Final

import httpx
from prefect.settings import get_current_settings

from tasks.settings import SettingsError

_REFUSED: Final = (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN)


def require_prefect_api() -> None:
    """Return if a Prefect API is configured; without one, Prefect makes a temporary one.

    Raises:
        SettingsError: none is.
    """
    if not get_current_settings().api.url:
        raise SettingsError({"PREFECT_API_URL": "is missing"})


def fault_in_words(error: httpx.HTTPError | TimeoutError) -> str:
    """Return what an error of Prefect's client means, and what to look at."""
    cause = type(error).__name__
    if not isinstance(error, httpx.HTTPStatusError):
        return f"Prefect does not answer ({cause}): check PREFECT_API_URL and that the server is up"
    status = error.response.status_code
    if status in _REFUSED:
        return (
            f"Prefect refuses the password (HTTP {status}): check PREFECT_API_AUTH_STRING, "
            "and PREFECT_API_KEY for Prefect Cloud"
        )
    return f"Prefect answers with HTTP {status}: the log of its server says why"
