"""The body of an answer: whole up to its limit, whatever coding it comes in, in bounded memory."""

import gzip
import tracemalloc
import zlib
from collections.abc import Callable, Iterator
from itertools import repeat

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.hub.body import LONGEST_BODY, UnknownCoding, body_of

MIB = 1 << 20
PART = 64 * 1024
"""Bytes of a body that come at once."""
MEMORY_LIMIT = 8 * MIB
CONTENT = b'{"ok": true, "sync_id": "s"}'

Compress = Callable[[bytes], bytes]


def in_parts(body: bytes, size: int) -> Iterator[bytes]:
    return (body[start : start + size] for start in range(0, len(body), size))


@pytest.fixture(scope="module", params=["gzip", "deflate"])
def bomb(request: pytest.FixtureRequest) -> tuple[str, bytes]:
    """A coding, and 100 MiB of zeros in it: a tenth of a MiB."""
    coding: str = request.param
    compressor = zlib.compressobj(wbits={"gzip": 31, "deflate": 15}[coding])
    zeros = b"\0" * MIB
    return coding, b"".join(compressor.compress(zeros) for _ in range(100)) + compressor.flush()


def start_of(parts: Iterator[bytes], coding: str) -> tuple[int, int]:
    """Return how much of a body is taken, and the most memory that this took."""
    tracemalloc.start()
    try:
        taken = len(body_of(parts, coding))
        return taken, tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("coding", "compress"),
    [
        ("", bytes),
        ("identity", bytes),
        (" Identity ", bytes),
        ("gzip", gzip.compress),
        ("GZip", gzip.compress),
        ("\tgzip ", gzip.compress),
        ("x-gzip", gzip.compress),
        ("X-GZIP", gzip.compress),
        ("deflate", zlib.compress),
        ("Deflate", zlib.compress),
    ],
)
@given(content=st.binary(max_size=300) | st.just(CONTENT), size=st.integers(1, 400))
def test_a_body_is_whole(coding: str, compress: Compress, content: bytes, size: int) -> None:
    assert body_of(in_parts(compress(content), size), coding) == content


@pytest.mark.parametrize("coding", ["", "gzip", "deflate"])
def test_an_empty_body_is_one_in_any_coding(coding: str) -> None:
    assert body_of([], coding) == body_of([b""], coding) == b""


@pytest.mark.parametrize(
    "coding", ["br", "zstd", "compress", "gzip, gzip", "gzip;q=1", "gzi", "\xff"]
)
def test_an_unknown_coding(coding: str) -> None:
    with pytest.raises(UnknownCoding):
        body_of([CONTENT], coding)


@pytest.mark.parametrize(
    ("coding", "body"),
    [
        ("gzip", CONTENT),
        ("gzip", zlib.compress(CONTENT)),
        ("deflate", gzip.compress(CONTENT)),
        ("gzip", gzip.compress(CONTENT)[:10] + b"\xff" * 20),
        ("gzip", gzip.compress(CONTENT)[:-8] + b"\0" * 8),
    ],
    ids=["no gzip", "deflate for gzip", "gzip for deflate", "broken data", "wrong checksum"],
)
@pytest.mark.parametrize("size", [1, PART])
def test_a_body_that_is_broken(coding: str, body: bytes, size: int) -> None:
    with pytest.raises(UnknownCoding):
        body_of(in_parts(body, size), coding)


def test_a_body_that_is_cut_off_is_taken_as_far_as_it_goes() -> None:
    body = gzip.compress(CONTENT)
    starts = [body_of([body[:length]], "gzip") for length in range(len(body))]
    assert all(CONTENT.startswith(start) for start in starts)
    assert starts[len(body) // 2] != CONTENT


def test_what_follows_a_compressed_body_is_no_part_of_it() -> None:
    assert body_of([gzip.compress(CONTENT) + b"x", b"y" * PART], "gzip") == CONTENT


@pytest.mark.parametrize("coding", ["", "gzip"])
def test_a_body_of_1_mib_is_whole(coding: str) -> None:
    content = b"x" * LONGEST_BODY
    body = gzip.compress(content) if coding else content
    assert body_of(in_parts(body, PART), coding) == content


@pytest.mark.parametrize("coding", ["", "gzip"])
@pytest.mark.parametrize("size", [100, PART, 4 * MIB])
def test_a_body_that_is_too_long_is_taken_to_its_limit_and_a_bit(coding: str, size: int) -> None:
    content = b"x" * (LONGEST_BODY + 3 * PART)
    body = gzip.compress(content) if coding else content
    taken = body_of(in_parts(body, size), coding)
    assert len(taken) > LONGEST_BODY
    assert content.startswith(taken)


def test_no_more_is_read_than_is_needed_to_see_that_a_body_is_too_long() -> None:
    parts = repeat(b"x" * 1000)
    taken = body_of(parts, "")
    assert LONGEST_BODY < len(taken) <= LONGEST_BODY + 1000


@pytest.mark.parametrize("size", [1000, PART, MIB])
def test_a_bomb_ends_in_bounded_memory(bomb: tuple[str, bytes], size: int) -> None:
    coding, body = bomb
    taken, memory = start_of(in_parts(body, size), coding)
    assert LONGEST_BODY < taken <= 2 * LONGEST_BODY + 1
    assert memory < MEMORY_LIMIT


def test_a_flood_behind_the_end_of_a_compressed_body_takes_no_memory() -> None:
    flood = iter([gzip.compress(CONTENT), *[b"x" * PART] * 1000])
    taken, memory = start_of(flood, "gzip")
    assert taken == len(CONTENT)
    assert memory < MEMORY_LIMIT
