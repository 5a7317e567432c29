"""What a source document says of itself: its key, version, last change and deletion."""

from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from bson import Code, DatetimeMS, Decimal128, Int64, ObjectId, Timestamp
from hypothesis import given
from hypothesis import strategies as st

from tasks.entities import entity_type_named
from tasks.source.bookkeeping import (
    CHANGE_TIMES,
    DELETION_FLAGS,
    DELETION_TIMES,
    Unsendable,
    changed_at,
    is_deleted,
    is_natural_key,
    natural_key_of,
    stated_version,
    version_of,
)

OID = ObjectId("507f1f77bcf86cd799439011")
NOW = 1_700_000_000_123
TIMES: list[Any] = [
    NOW,
    Int64(NOW),
    float(NOW),
    DatetimeMS(NOW),
    datetime(2023, 11, 14, 22, 13, 20, 123_999, tzinfo=UTC),
    datetime(2023, 11, 14, 22, 13, 20, 123_999),  # noqa: DTZ001 - naive times count as UTC
    datetime(2023, 11, 14, 16, 13, 20, 123_999, tzinfo=timezone(timedelta(hours=-6))),
    "2023-11-14T22:13:20.123Z",
    "2023-11-14T22:13:20.123",
    "2023-11-14 16:13:20.123-06:00",
]
"""One moment, in all the ways in which a back office writes it."""
NO_TIMES: list[Any] = ["yesterday", "1700000000123", True, float("inf"), float("nan")]
NO_TIMES += [[], {}, OID, Decimal128("1"), Timestamp(1, 1), b"", 10**300]
BLANK: list[Any] = [None, "", False, 0, 0.0, Int64(0)]


def with_each(names: tuple[str, ...], values: list[Any]) -> list[tuple[str, Any]]:
    return [(name, value) for name in names for value in values]


@pytest.mark.parametrize(
    ("entity_type", "document", "key"),
    [
        ("tenant", {"_id": OID, "id": "acme"}, "acme"),
        ("tenant", {"_id": 1, "id": OID}, str(OID)),
        ("tenant", {"_id": OID}, str(OID)),
        ("tenant", {"_id": OID, "id": None}, str(OID)),
        ("tenant", {"_id": OID, "id": ""}, None),
        ("tenant", {"_id": "text"}, None),
        ("tenant", {}, None),
        ("domain", {"_id": OID}, None),
        ("domain", {"_id": OID, "id": "acme"}, None),
        ("domain", {"_id": OID, "host": "a.example"}, "a.example"),
        ("domain", {"host": OID}, str(OID)),
        ("domain", {"host": 5}, None),
        ("domain", {"host": Code("k")}, None),
        ("domain", {"host": "k" * 1_024}, "k" * 1_024),
        ("domain", {"host": "k" * 1_025}, None),
        ("domain", {"host": "\udcff"}, None),
        ("domain", {"host": {"$gt": ""}}, None),
    ],
)
def test_the_natural_key(entity_type: str, document: dict[str, Any], key: str | None) -> None:
    assert natural_key_of(entity_type_named(entity_type), document) == key


@given(st.text(max_size=2_000))
def test_any_short_text_of_unicode_is_a_natural_key(text: str) -> None:
    assert is_natural_key(text) == (0 < len(text) <= 1_024)


@pytest.mark.parametrize(
    ("version", "expected"),
    [(3, 3), (3.0, 3), (Int64(3), 3), (0, 0), (-1, -1), (-(2**63), -(2**63)), (None, None)],
)
def test_versions_are_integers_however_stored(version: Any, expected: int | None) -> None:
    for told in (stated_version({"version": version}), version_of({"version": version})):
        assert told == expected
        assert type(told) is type(expected)


NO_VERSIONS: list[Any] = [True, "3", "", 3.5, float("nan"), float("inf"), [3], {}]
NO_VERSIONS += [1e300, 2.0**63, -(2.0**64), Decimal128("3"), datetime(2024, 1, 1, tzinfo=UTC)]


@pytest.mark.parametrize("version", NO_VERSIONS)
def test_a_version_that_is_no_integer_of_64_bits_is_a_fault(version: Any) -> None:
    document = {"version": version, "updated_at": NOW}
    for read in (stated_version, version_of):
        with pytest.raises(Unsendable, match=r"^version: not an integer$"):
            read(document)


@pytest.mark.parametrize(("name", "moment"), with_each(CHANGE_TIMES, TIMES))
def test_without_version_the_time_of_the_change_counts(name: str, moment: Any) -> None:
    assert changed_at({name: moment}) == version_of({name: moment}) == NOW
    assert version_of({name: moment, "version": 0}) == 0
    assert stated_version({name: moment}) is None


@pytest.mark.parametrize("moment", [*BLANK, *NO_TIMES])
def test_what_is_no_time_is_no_change(moment: Any) -> None:
    assert version_of(dict.fromkeys(CHANGE_TIMES, moment)) is None
    assert version_of({"updated_at": moment, "updatedAt": NOW}) == NOW


def test_a_change_in_the_year_60000_and_one_before_the_first_year() -> None:
    assert changed_at({"updated_at": DatetimeMS(1_831_000_000_000_000)}) == 1_831_000_000_000_000
    assert changed_at({"updated_at": "0001-01-01T00:00:00+23:59"}) == -62_135_683_140_000


@pytest.mark.parametrize(("name", "moment"), with_each(DELETION_TIMES, TIMES))
def test_a_document_is_deleted_from_the_time_on_that_it_says(name: str, moment: Any) -> None:
    assert is_deleted({name: moment}, NOW)
    assert is_deleted({name: moment}, NOW + 1)
    assert not is_deleted({name: moment}, NOW - 1)


@pytest.mark.parametrize("name", DELETION_FLAGS)
def test_a_document_is_deleted_that_says_so(name: str) -> None:
    assert is_deleted({name: True}, NOW)
    assert is_deleted({name: True, **dict.fromkeys(DELETION_TIMES, NOW + 1)}, NOW)


@pytest.mark.parametrize(("name", "blank"), with_each((*DELETION_TIMES, *DELETION_FLAGS), BLANK))
def test_what_is_blank_is_no_deletion(name: str, blank: Any) -> None:
    assert not is_deleted({name: blank}, NOW)


@pytest.mark.parametrize(
    ("name", "value", "fault"),
    [(*each, "not a time") for each in with_each(DELETION_TIMES, NO_TIMES)]
    + [
        (*each, "neither true nor false")
        for each in with_each(DELETION_FLAGS, [1, "true", "x", NOW, [], {}, float("nan")])
    ],
)
def test_anything_else_is_a_fault_that_names_the_field(name: str, value: Any, fault: str) -> None:
    with pytest.raises(Unsendable, match=f"^{name}: {fault}$"):
        is_deleted({name: value}, NOW)


def test_a_document_without_any_of_it() -> None:
    assert not is_deleted({}, NOW)
    assert version_of({}) is changed_at({}) is None
