"""The body of an answer: read to its limit, and decompressed though nobody asked for that."""

import zlib
from collections.abc import Iterable
from typing import Final

LONGEST_BODY: Final = 1 << 20
"""Bytes of a body that count, once it is decompressed."""
_WINDOW_BITS: Final = {"gzip": zlib.MAX_WBITS | 16, "x-gzip": zlib.MAX_WBITS | 16, "deflate": 15}


class UnknownCoding(ValueError):
    """A body can't be decompressed: its content coding is unknown, or its data broken."""


def body_of(parts: Iterable[bytes], coding: str) -> bytes:
    """Join the parts of a body, and undo its content coding; no more than the limit and a bit.

    Args:
        parts: the body as it comes.
        coding: value of `Content-Encoding`, "" for none.

    Raises:
        UnknownCoding: the body can't be decompressed.
    """
    name = coding.strip().lower()
    if name in ("", "identity"):
        return _start_of(parts)
    if name not in _WINDOW_BITS:
        raise UnknownCoding(coding)
    try:
        return _start_of(_inflated(parts, _WINDOW_BITS[name]))
    except zlib.error:
        raise UnknownCoding(coding) from None


def _start_of(parts: Iterable[bytes]) -> bytes:
    received = bytearray()
    for part in parts:
        received += part
        if len(received) > LONGEST_BODY:
            break
    return bytes(received)


def _inflated(parts: Iterable[bytes], window_bits: int) -> Iterable[bytes]:
    """Yield what each part holds; of a decompression bomb, no more than the limit at once."""
    inflater = zlib.decompressobj(window_bits)
    for part in parts:
        if not inflater.eof:  # it would keep what comes behind the end
            yield inflater.decompress(part, LONGEST_BODY + 1)
