"""The hub's answers, compressed."""

import tracemalloc
import zlib

import pytest

from scripts.local.hub.messages import Answer, Compression

MIB = 1 << 20


@pytest.mark.parametrize(("compression", "window_bits"), [("gzip", 31), ("deflate", 15)])
def test_the_content_is_compressed_with_its_padding(
    compression: Compression, window_bits: int
) -> None:
    answer = Answer(200, b"{}", padding=200_000).compressed(compression)
    assert zlib.decompress(answer.content, window_bits) == b"{}" + b" " * 200_000
    assert answer.padding == 0
    assert answer.headers == (("Content-Encoding", compression),)


def test_long_padding_is_never_in_memory_as_a_whole() -> None:
    tracemalloc.start()
    try:
        bomb = Answer(200, b"{}", padding=100 * MIB).compressed("gzip")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(bomb.content) < MIB
    assert peak < 4 * MIB
