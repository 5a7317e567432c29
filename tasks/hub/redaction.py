"""Texts from outside, as they may be kept: without the token and control characters, and short."""

import json
import re
from collections.abc import Iterable
from typing import Final
from urllib.parse import quote

_LONGEST_TEXT: Final = 500
_REDACTED: Final = "[redacted]"


def spellings_of(token: str) -> tuple[str, ...]:
    """Return the token as it is, and as JSON, Python and URLs write it."""
    in_json = json.dumps(token)[1:-1]
    in_url = quote(token, safe="")
    with_lower_hex = re.sub("%..", lambda escape: escape[0].lower(), in_url)
    in_python = repr(token.encode())[2:-1]
    spellings = (token, in_json, in_json.replace("/", r"\/"), in_python, in_url, with_lower_hex)
    return tuple(dict.fromkeys(spellings))


def cleaned(text: object, secrets: Iterable[str]) -> str:
    """Return a text without the secrets, printable, at most 500 characters; empty if it is none."""
    if not isinstance(text, str):
        return ""
    for secret in secrets:
        text = text.replace(secret, _REDACTED)
    text = text[:_LONGEST_TEXT]
    if not text.isprintable():
        text = "".join(each if each.isprintable() else " " for each in text)
    return text.strip()
