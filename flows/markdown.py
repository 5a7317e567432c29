"""Texts of others in artifacts, as both of Prefect's interfaces show them."""

import re
import textwrap
from typing import Final

_MARKUP: Final = re.compile(
    r"[\\`*\[\]<&~@] | (?<!\w)_ | _(?!\w) | :(?=//) | (?<=www)\.", re.IGNORECASE | re.VERBOSE
)
"""Marks of emphasis, links, images and HTML."""
_BLOCK: Final = re.compile(r"^\s*([#>+=-]|\d+[.)]\s)", re.MULTILINE)
"""Marks of headings, quotes, lists and lines."""
_CODE: Final = " " * 4
"""What a line of code begins with."""


def escaped(text: str) -> str:
    """Return a text as a part of Markdown that shows it as it is."""
    return _MARKUP.sub(r"\\\g<0>", text)


def as_cell(text: str) -> str:
    """Return a text as a cell of a table that shows it as it is.

    The dashboard takes a cell for Markdown, where code is shown as it is. The V2 interface takes it
    for plain text, where nobody sees the spaces that make it code; escapes would be seen.
    """
    is_markup = _MARKUP.search(text) or _BLOCK.search(text)
    return textwrap.indent(text, _CODE) if is_markup else text
