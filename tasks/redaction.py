"""Takes secrets out of texts, however they are spelt there."""

import base64
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from functools import cache
from html.entities import html5
from typing import Final

_LONGEST_TEXT: Final = 500
_REDACTED: Final = "[redacted]"
_SHORTEST_ENCODED: Final = 6
"""Of what is shorter, base64 is in every text by chance."""
_BACKSLASHES: Final = r"\\\\{0,3}"
"""JSON may hold JSON, and each time the backslashes double."""
_PERCENT: Final = "%(?:25){0,3}"
_AMPERSAND: Final = "&(?:amp;){0,3}"
_BACKSLASHES_AND_CHARACTER: Final = re.compile(r"(\\*)([^\\]?)")
_BACKSLASH: Final = "|".join(
    (
        r"\\(?:x5[cC]|u005[cC])?",
        f"{_PERCENT}5[cC]",
        f"{_AMPERSAND}(?:#0{{0,7}}92|#[xX]0{{0,6}}5[cC]|bsol);?",
    )
)
_RUN_OF_BACKSLASHES: Final = f"(?:{_BACKSLASH}){{1,64}}+"
"""However many there are in the secret: possessive, since what follows may begin with one."""
_BASE64_OF_TWO_ALPHABETS: Final = {"+": "-", "/": "_"}


class Redaction:
    """Finds secrets in texts.

    It finds a secret as it is; with any of its characters escaped as in JSON, Python, URLs or HTML,
    once or more often; and in hex or base64, also where it is a part of what was encoded. A secret
    of fewer than six characters is not found in hex and base64.
    """

    def __init__(self, secrets: Iterable[str]) -> None:
        longest_first = sorted({secret for secret in secrets if secret}, key=len, reverse=True)
        spellings = [spelling for secret in longest_first for spelling in _spellings(secret)]
        self._pattern = re.compile("|".join(spellings) or r"(?!)")

    def redacted(self, text: str) -> str:
        """Return a text without the secrets."""
        return self._pattern.sub(_REDACTED, text)

    def cleaned(self, text: object) -> str:
        """Return a text from outside as it may be kept: without the secrets, printable and short.

        It has at most 500 characters. What is no text is an empty one.
        """
        if not isinstance(text, str):
            return ""
        text = self.redacted(text)[:_LONGEST_TEXT]
        if not text.isprintable():
            text = "".join(each if each.isprintable() else " " for each in text)
        return text.strip()


def _spellings(secret: str) -> Iterator[str]:
    """Return regular expressions that find a secret; nothing in them repeats without limit."""
    if "\\" in secret:  # of whose backslashes what comes next may find too many
        yield re.escape(secret)
    yield "".join(_escaped_parts(secret))
    if len(secret) >= _SHORTEST_ENCODED:
        encoded = secret.encode(errors="surrogatepass")
        yield _hex(encoded)
        yield from _base64(encoded)


def _escaped_parts(secret: str) -> Iterator[str]:
    for backslashes, character in _BACKSLASHES_AND_CHARACTER.findall(secret):
        if backslashes:
            yield _RUN_OF_BACKSLASHES
        if character:
            yield _escaped(character, "" if backslashes else _BACKSLASHES)


@cache
def _escaped(character: str, backslashes: str = _BACKSLASHES) -> str:
    """Return what finds a character as it is, and with the escapes of JSON, Python, URLs, HTML.

    Args:
        character: any but a backslash.
        backslashes: what finds those of its escapes; empty where others stand before it, which have
            been found with them.
    """
    in_url = "".join(f"{_PERCENT}{_hex(byte)}" for byte in _single_bytes(character))
    in_html = f"{_AMPERSAND}(?:{'|'.join(_html_references(character))});?"
    behind_backslashes = (
        "".join(backslashes + escape for escape in escapes)
        for escapes in _escapes_behind_backslashes(character)
    )
    alternatives = (in_url, in_html, *behind_backslashes, re.escape(character))
    # Of two that are the same, both would be tried at each character.
    return f"(?:{'|'.join(dict.fromkeys(alternatives))})"


def _escapes_behind_backslashes(character: str) -> Iterator[tuple[str, ...]]:
    code = ord(character)
    utf_16 = character.encode("utf-16-be", errors="surrogatepass")
    yield (re.escape(character),)
    yield tuple(f"x{_hex(byte)}" for byte in _single_bytes(character))
    yield tuple(f"u{_hex(utf_16[at : at + 2])}" for at in range(0, len(utf_16), 2))
    yield (f"U{_in_either_case(f'{code:08x}')}",)
    yield (f"x{_in_either_case(f'{code:02x}')}",)


def _single_bytes(character: str) -> list[bytes]:
    return [bytes([byte]) for byte in character.encode(errors="surrogatepass")]


def _html_references(character: str) -> Iterator[str]:
    code = ord(character)
    yield f"#0{{0,7}}{code}"
    yield f"#[xX]0{{0,6}}{_in_either_case(f'{code:x}')}"
    yield from _html_names()[character]


@cache
def _html_names() -> defaultdict[str, list[str]]:
    names = defaultdict(list)
    for name, character in html5.items():
        if name.endswith(";"):
            names[character].append(name.removesuffix(";"))
    return names


def _hex(data: bytes) -> str:
    return _in_either_case(data.hex())


def _in_either_case(digits: str) -> str:
    return re.sub("[a-f]", lambda digit: f"[{digit[0]}{digit[0].upper()}]", digits)


def _base64(data: bytes) -> Iterator[str]:
    """Return what finds bytes in base64, with none, one or two bytes before them in their triple.

    A character that also holds bits of what stands before or behind them is left out.
    """
    for before in range(3):
        encoded = base64.b64encode(bytes(before) + data).decode()
        first, behind_last = -(-before * 8 // 6), (before + len(data)) * 8 // 6
        yield "".join(_of_base64(character) for character in encoded[first:behind_last])


def _of_base64(character: str) -> str:
    url_safe = _BASE64_OF_TWO_ALPHABETS.get(character)
    return f"(?:{url_safe}|{_escaped(character)})" if url_safe else character
