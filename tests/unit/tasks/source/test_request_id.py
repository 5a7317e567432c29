"""The request id against vectors made with `printf '%s' 'tenant|…|1' | sha256sum`."""

from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.source.request_id import effective_version, request_id

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


def test_version_wins_over_updated_at() -> None:
    assert effective_version(0, datetime(2024, 1, 1, tzinfo=UTC), {}) == 0


@pytest.mark.parametrize(
    "moment",
    [
        datetime(2023, 11, 14, 22, 13, 20, 123_999, tzinfo=UTC),
        datetime(2023, 11, 14, 22, 13, 20, 123_999),  # noqa: DTZ001 - naive times count as UTC
        datetime(2023, 11, 14, 16, 13, 20, 123_999, tzinfo=timezone(timedelta(hours=-6))),
    ],
)
def test_updated_at_stands_in_as_epoch_milliseconds(moment: datetime) -> None:
    assert effective_version(None, moment, {}) == 1_700_000_000_123


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)
fields_of_an_item = st.dictionaries(st.text(), json_values, max_size=6)


@given(fields_of_an_item)
def test_hash_of_the_fields_ignores_their_order(fields: dict[str, Any]) -> None:
    backwards = dict(reversed(fields.items()))
    assert effective_version(None, None, fields) == effective_version(None, None, backwards)


@given(fields_of_an_item, st.text(), st.text())
def test_hash_of_the_fields_tells_a_change(fields: dict[str, Any], old: str, new: str) -> None:
    before = effective_version(None, None, {**fields, "name": old})
    after = effective_version(None, None, {**fields, "name": new})
    assert (before == after) == (old == new)
