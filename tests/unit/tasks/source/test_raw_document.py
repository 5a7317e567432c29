"""Documents that PyMongo can't read, or hands back with another `_id` than MongoDB holds."""

import hashlib
import struct
from datetime import UTC, datetime
from typing import Any

import bson
import pytest
from bson import Binary, Code, DatetimeMS, Decimal128, Int64, MaxKey, MinKey, ObjectId, Regex
from hypothesis import given
from hypothesis import strategies as st

from tasks.mongo import identity
from tasks.source.raw_document import (
    UnreadableDocument,
    document_from,
    legible,
    source_id_of,
    survives_reading,
)


def element(bson_type: int, name: bytes, value: bytes) -> bytes:
    return bytes([bson_type]) + name + b"\0" + value


def text(name: bytes, value: bytes) -> bytes:
    return element(2, name, struct.pack("<i", len(value) + 1) + value + b"\0")


def number(name: bytes, value: int) -> bytes:
    return element(16, name, struct.pack("<i", value))


def document(*elements: bytes) -> bytes:
    content = b"".join(elements)
    return struct.pack("<i", len(content) + 5) + content + b"\0"


NOT_UTF_8 = "it has text that is not UTF-8, or is no sound BSON"
CHANGED_ID = "_id: has a name twice, or an old type"
NO_ID = "_id: missing, or a list"
KEY = text(b"id", b"acme")
UNREADABLE = {
    "bytes in _id": (document(text(b"_id", b"\xff"), KEY), NOT_UTF_8),
    "bytes in a text": (document(number(b"_id", 1), KEY, text(b"name", b"\xff\xfe")), NOT_UTF_8),
    "bytes in a name": (document(number(b"_id", 2), KEY, text(b"\xff", b"x")), NOT_UTF_8),
    "name twice": (
        document(element(3, b"_id", document(number(b"a", 1), number(b"a", 2))), KEY),
        CHANGED_ID,
    ),
    "symbol": (
        document(element(14, b"_id", struct.pack("<i", 2) + b"x\0"), KEY),
        CHANGED_ID,
    ),
    "no _id": (document(KEY), NO_ID),
    "list for _id": (
        document(element(4, b"_id", document(number(b"0", 1))), KEY),
        NO_ID,
    ),
    "name twice, not first": (
        document(KEY, element(3, b"_id", document(number(b"a", 1), number(b"a", 2)))),
        CHANGED_ID,
    ),
    "long _id": (document(text(b"_id", b"x" * 3_000), KEY), "_id: longer than 2048 bytes"),
}


@pytest.mark.parametrize(("raw", "fault"), UNREADABLE.values(), ids=UNREADABLE)
def test_what_can_not_be_read_is_named_by_its_hash_and_told(raw: bytes, fault: str) -> None:
    read = document_from(raw)
    assert isinstance(read, UnreadableDocument)
    assert read.source_id == f"sha256:{hashlib.sha256(raw).hexdigest()}"
    assert read.legible["id"] == "acme"
    assert read.fault == fault


def test_of_a_document_that_is_no_bson_nothing_is_legible() -> None:
    binary = element(5, b"x", struct.pack("<i", 3) + b"\x02abc")
    read = document_from(document(number(b"_id", 4), binary, KEY))
    assert isinstance(read, UnreadableDocument)
    assert read.legible == {}
    assert read.fault == NOT_UTF_8


def test_a_view_may_return_the_id_behind_other_fields() -> None:
    read = document_from(document(KEY, text(b"_id", "ü".encode())))
    assert read == {"id": "acme", "_id": "ü"}


def test_what_is_told_of_any_document() -> None:
    readable, unreadable = {"_id": 1, "id": "a"}, UnreadableDocument("sha256:0", {"id": "b"}, "")
    assert [legible(each)["id"] for each in (readable, unreadable)] == ["a", "b"]
    assert [source_id_of(each) for each in (readable, unreadable)] == [1, "sha256:0"]


values = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**63), 2**63 - 1),
    st.integers(-(2**63), 2**63 - 1).map(Int64),
    st.integers(-(2**63), 2**63 - 1).map(DatetimeMS),
    st.floats(),
    st.text(max_size=100),
    st.binary(max_size=100),
    st.builds(ObjectId),
    st.datetimes(timezones=st.just(UTC)),
    st.dictionaries(st.text("ab.$", min_size=1), st.integers(0, 3), max_size=2),
    st.sampled_from([MinKey(), MaxKey(), Decimal128("1.50"), Regex("x"), Code("x")]),
    st.sampled_from([Binary(b"x", 5), Binary(b"x" * 16, 4), "x" * 2_000]),
)


@given(values, values)
def test_any_other_document_is_read_with_the_id_that_mongodb_holds(
    source_id: Any, value: Any
) -> None:
    raw = bson.encode({"_id": source_id, "value": value})
    read = document_from(raw)
    assert isinstance(read, dict)
    assert bson.encode({"_id": read["_id"]}) == bson.encode({"_id": source_id})


@given(values)
def test_an_id_that_surely_survives_is_read_unchanged(source_id: Any) -> None:
    if survives_reading(source_id):
        read = document_from(bson.encode({"_id": source_id}))
        assert isinstance(read, dict)
        assert identity(read["_id"]) == identity(source_id)


@pytest.mark.parametrize(
    "source_id",
    [ObjectId(), 1, Int64(1), 1.5, datetime(2024, 1, 1, tzinfo=UTC), "x" * 1_024, b"x" * 1_024],
)
def test_the_usual_ids_need_no_second_look(source_id: Any) -> None:
    assert survives_reading(source_id)


@pytest.mark.parametrize(
    "source_id",
    [
        "ü",
        "x" * 1_025,
        b"x" * 1_025,
        Code("x"),
        {"a": 1},
        True,
        None,
        Decimal128("1"),
        MaxKey(),
        DatetimeMS(1),
    ],
)
def test_other_ids_do(source_id: Any) -> None:
    assert not survives_reading(source_id)
