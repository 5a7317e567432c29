"""The reason that an answer gives, wherever it stands: Stage 1 is not alone on the way."""

import html
import json
import re
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlsplit, urlunsplit

_KEYS: Final = ("message", "Message", "errorMessage", "detail", "error")
"""Where AWS, proxies and web frameworks put it."""
_TITLE: Final = re.compile(r"<title[^<>]*>\s*([^<\s][^<]*)", re.IGNORECASE)
_TAG: Final = re.compile(r"<[^<>]*>|&#\w{9,}")
"""A tag, or a character reference too long to be one: `html.unescape` fails of it."""
_WORDS_SHOWN: Final = 200


@dataclass(frozen=True)
class Reason:
    """The words of an answer about itself, each "" where there are none; not free of secrets.

    `refusal` is the message of a refusal by Stage 1 itself, `text` that of anybody else.
    """

    refusal: str = ""
    text: str = ""


def reason_in(content: dict[str, Any], body: bytes, location: str | None) -> Reason:
    """Find the reason in an answer.

    Args:
        content: the body as a JSON object; empty where it is none.
        body: the body as it is.
        location: where a redirect points; None for no redirect.
    """
    if location is not None:
        return Reason(text=f"redirects to {_without_credentials(location)}")
    error = content.get("error")
    if isinstance(error, dict) and (message := _text(error.get("message"))):
        return Reason(refusal=message)
    texts = (_text(content.get(key)) for key in _KEYS)
    said = next((text for text in texts if text), "")
    return Reason(text=said or _words_in(body))


def json_object(body: bytes) -> dict[str, Any]:
    """Read a body as a JSON object; an empty one where it is none."""
    try:
        content = json.loads(body)
    except (ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def _words_in(body: bytes) -> str:
    """Return the title of a page, or else the first words of a text."""
    text = body.decode(errors="ignore")
    if text.lstrip()[:1] in ("{", "["):
        return ""
    title = _TITLE.search(text)
    words = " ".join(html.unescape(_TAG.sub(" ", title[1] if title else text)).split())
    # A word that is cut could be the token's beginning, which nobody would know for it.
    is_short = len(words) <= _WORDS_SHOWN
    return words if is_short else words[: _WORDS_SHOWN + 1].rpartition(" ")[0]


def _without_credentials(location: str) -> str:
    try:
        parts = urlsplit(location)
    except ValueError:
        return "an address that is none"
    host = parts.netloc.rpartition("@")[2]
    return urlunsplit(parts._replace(netloc=host, query="", fragment=""))


def _text(value: Any) -> str:
    return value.strip() if isinstance(value, str) else ""
