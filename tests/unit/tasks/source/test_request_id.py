"""Request ids and digests against vectors made with `printf '%s' 'tenant|…|1' | sha256sum`."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.source.request_id import content_version, digest_of, request_id

VECTORS = [
    ("tenant", "regnum-christi", 1, "14e7a65a65933c5ed7b7545254c82da9"),
    ("client", "semperaltius", 1, "eb72e622e60a97fd91803f314ae68d3b"),
    ("subtenant", "rcsa", 1, "d8b6ef54b85436c3ed3c07a4f2d9dfd6"),
    ("domain", "pagos.semperaltius.edu.mx", 1, "bd5aebc6b4bd41b7dae2b8c05e57d2fa"),
    ("branding", "branding_rcsa_001", 1, "675f49b8db1cfae939929448b743c5fc"),
    ("tenant", "niño-ñandú", 12, "c82384a69ed7854bf2eaae93f5afb945"),
    ("domain", "x", 1_700_000_000_123, "1b37b2e053163fd0a2ec0a2a5e02af27"),
]


@pytest.mark.parametrize(("entity_type", "key", "version", "expected"), VECTORS)
def test_vectors_computed_by_hand(entity_type: str, key: str, version: int, expected: str) -> None:
    assert request_id(entity_type, key, version) == expected


@given(st.text(), st.text(), st.integers())
def test_is_32_hex_digits_and_repeatable(entity_type: str, key: str, version: int) -> None:
    first = request_id(entity_type, key, version)
    assert len(first) == 32
    assert set(first) <= set("0123456789abcdef")
    assert first == request_id(entity_type, key, version)


@given(st.text(min_size=1), st.integers(), st.integers())
def test_each_version_is_another_request(key: str, one: int, other: int) -> None:
    same = request_id("tenant", key, one) == request_id("tenant", key, other)
    assert same == (one == other)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)
bodies = st.dictionaries(st.text(), json_values, max_size=6)


def test_a_digest_computed_by_hand() -> None:
    digest = "a83e3950bd5ee6c6d2c9dc0e44f852e45f3bf0acb4a870a2fd389466563349f5"
    assert digest_of({"name": "ñ", "id": "a"}) == digest


@given(bodies)
def test_a_digest_ignores_the_order_of_the_fields(body: dict[str, Any]) -> None:
    assert digest_of(body) == digest_of(dict(reversed(body.items())))


@given(bodies, st.text(), st.text())
def test_a_digest_tells_a_change(body: dict[str, Any], old: str, new: str) -> None:
    before, after = digest_of({**body, "name": old}), digest_of({**body, "name": new})
    assert (before == after) == (old == new)


def test_content_that_is_the_first_of_its_item_is_its_own_version() -> None:
    assert content_version("a digest", None) == "a digest"


def test_content_that_comes_back_has_another_version_than_before() -> None:
    """A is sent, then B, then A again: three versions, each the same when it is asked for anew."""
    first = content_version("A", None)
    second = content_version("B", request_id("tenant", "acme", first))
    third = content_version("A", request_id("tenant", "acme", second))
    assert len({first, second, third}) == 3
    assert third == content_version("A", request_id("tenant", "acme", second))


@given(st.text(), st.text(min_size=1))
def test_a_version_of_content_is_64_hex_digits(digest: str, last_request_id: str) -> None:
    version = content_version(digest, last_request_id)
    assert len(version) == 64
    assert set(version) <= set("0123456789abcdef")
