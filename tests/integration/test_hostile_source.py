"""Source documents of any shape: each ends as one step, and none takes another one with it."""

import struct
from contextlib import suppress
from datetime import UTC, datetime
from functools import reduce
from typing import Any

import bson
import pytest
from bson import (
    Binary,
    Code,
    CodecOptions,
    DatetimeMS,
    DBRef,
    Decimal128,
    Int64,
    MaxKey,
    MinKey,
    ObjectId,
    Regex,
    Timestamp,
)
from bson.codec_options import DatetimeConversion
from bson.raw_bson import RawBSONDocument
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pymongo.errors import WriteError

from tests.integration.world import World, stage_runs, task_runs

Document = dict[str, Any]
IN, INVALID, DUPLICATE = None, "VALIDATION_ERROR", "DUPLICATE_KEY"
YEAR_60000 = DatetimeMS(1_831_000_000_000_000)
ANY_TIME: CodecOptions[Document] = CodecOptions(
    tz_aware=True, datetime_conversion=DatetimeConversion.DATETIME_AUTO
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


def tenant(**fields: Any) -> Document:
    return {"name": "T", "version": 1, **fields}


BY_SOURCE_ID: list[tuple[Any, str | None]] = [
    (MinKey(), IN),
    (None, IN),
    (-0.0, IN),
    (float("nan"), IN),
    (Int64(2**60), IN),
    (Decimal128("1.50"), IN),
    ("text", IN),
    ("ünï", IN),
    ({"a": 1, "b.c": {"": [1]}}, IN),
    ({"a": Regex("x"), "b": float("nan")}, IN),
    (Binary(b"x", 5), IN),
    (Binary(b"x" * 16, 4), IN),
    (True, IN),
    (YEAR_60000, IN),
    (Timestamp(0, 0), IN),
    (DBRef("a", 1), IN),
    (Code("x"), IN),
    (Code("x", {"a": 1}), IN),
    (MaxKey(), IN),
]
"""Every kind of `_id`, with an `id` that is sound."""

BY_FIELDS: list[tuple[Document, str | None]] = [
    (tenant(id="$name"), IN),
    (tenant(id="a\0b"), IN),
    (tenant(id="a\n{0}{batch.name}\x1b[31m"), IN),
    (tenant(id="😀\u202e"), IN),
    (tenant(id="k" * 1_024), IN),
    (tenant(id="k" * 1_025), INVALID),
    (tenant(id="k" * 3_000_000), INVALID),
    (tenant(id=5), INVALID),
    (tenant(id=["k"]), INVALID),
    (tenant(id=Code("k")), INVALID),
    (tenant(id="time", updated_at=YEAR_60000), IN),
    ({"id": "only time", "name": "T", "updated_at": YEAR_60000}, IN),
    (tenant(id="year", since=YEAR_60000), INVALID),
    (tenant(id="old", since=datetime(1, 1, 1, tzinfo=UTC)), IN),
    (tenant(id="flag", version=True), INVALID),
    (tenant(id="vast", version=1e300), INVALID),
    (tenant(id="least", version=-(2**63)), IN),
    (tenant(id="no number", version=float("nan")), INVALID),
    (tenant(id="gone", deleted_at={"$date": "odd"}), INVALID),
    (tenant(id="gone once", deleted_at=YEAR_60000), IN),
    (tenant(id="infinite", ratio=float("inf")), INVALID),
    (tenant(id="minus nothing", ratio=-0.0), IN),
    (tenant(id="int64", seats=Int64(2**63 - 1)), IN),
    (tenant(id="decimal", price=Decimal128("NaN")), IN),
    (tenant(id="code", script=Code("x")), INVALID),
    (tenant(id="regex", pattern=Regex("x")), INVALID),
    (tenant(id="reference", owner=DBRef("a", 1)), INVALID),
    (tenant(id="timestamp", at=Timestamp(1, 1)), INVALID),
    (tenant(id="odd names", **{"": 1, "$x": 1, "a.b": 1, "$ref": 1}), IN),
    (tenant(id="model", model_config={}, model_dump=1, __class__="x", __dict__={}), IN),
    (tenant(id="odd fields", enabled={"$gt": ""}), INVALID),
    (tenant(id="large", logo="x" * 15_000_000), IN),
    (tenant(id="large too", logo="x" * 15_000_000), IN),
    (tenant(id="deep", tree=reduce(lambda inner, _: [inner], range(170), [])), IN),
    (tenant(id="bad name", **{"n\n" + "x" * 1_000_000: Regex("x")}), INVALID),
    (tenant(id="$twice", version=1), DUPLICATE),
    (tenant(id="$twice", version=2), IN),
    (tenant(id="ö" * 1_024, version=1), DUPLICATE),
    (tenant(id="ö" * 1_024, version=2), IN),
    (tenant(id="k" * 1_025), INVALID),
]
"""Every kind of field, with an `_id` that is sound."""

UNSOUND: dict[bytes | None, bytes] = {
    b"bytes in _id": document(text(b"_id", b"\xff"), text(b"id", b"bytes in _id")),
    b"name twice": document(
        element(3, b"_id", document(number(b"a", 1), number(b"a", 2))), text(b"id", b"name twice")
    ),
    b"long _id": document(text(b"_id", b"x" * 1_000_000), text(b"id", b"long _id")),
    b"bytes": document(number(b"_id", 1), text(b"id", b"bytes"), text(b"name", b"\xff\xfe")),
    b"bytes name": document(number(b"_id", 2), text(b"id", b"bytes name"), text(b"\xff", b"x")),
    None: document(number(b"_id", 3), text(b"id", b"\xff")),
    b"": document(
        number(b"_id", 4), element(5, b"x", struct.pack("<i", 3) + b"\x02abc"), text(b"id", b"x")
    ),
}
"""By natural key, as far as that can be read: what PyMongo can't read, or not hand back."""


def add_all(world: World) -> None:
    raw = [RawBSONDocument(content) for content in UNSOUND.values()]
    by_id = [
        {"_id": source_id, **tenant(id=f"id {number}")}
        for number, (source_id, _) in enumerate(BY_SOURCE_ID)
    ]
    by_fields = [{"_id": ObjectId(), **fields} for fields, _ in BY_FIELDS]
    for each in (*raw, *by_id, *by_fields):
        world.database.source_tenants.insert_one(each)


def code(step: Document) -> str | None:
    return step["error"] and step["error"]["code"]


@pytest.fixture
def world(world: World) -> World:
    world.database = world.database.with_options(codec_options=ANY_TIME)
    return world


@pytest.mark.parametrize(("max_task_runs", "batches"), [("100", 58), ("5", 3)])
def test_every_document_ends_as_one_step(
    world: World, monkeypatch: pytest.MonkeyPatch, max_task_runs: str, batches: int
) -> None:
    monkeypatch.setenv("ADMIN_MAX_TASK_RUNS", max_task_runs)
    add_all(world)
    run = world.sync(entities=["tenant"])

    count = len(BY_SOURCE_ID) + len(BY_FIELDS) + len(UNSOUND)
    assert len(run.steps) == count
    assert run.document["totals"]["total"] == count
    by_field = [code(step) for step in run.steps if isinstance(step["source_id"], ObjectId)]
    assert sorted(map(str, by_field)) == sorted(str(wanted) for _, wanted in BY_FIELDS)
    by_key = {step["natural_key"]: step for step in run.steps}
    for fields, wanted in BY_FIELDS:
        if wanted is IN:
            assert code(by_key[fields["id"]]) is IN, fields["id"]
    for number, (source_id, wanted) in enumerate(BY_SOURCE_ID):
        step = by_key[f"id {number}"]
        assert bson.encode({"": step["source_id"]}) == bson.encode({"": source_id})
        assert code(step) == wanted
    unsound = [step for step in run.steps if str(step["source_id"]).startswith("sha256:")]
    assert {code(step) for step in unsound} == {INVALID}
    assert {step["natural_key"] for step in unsound} == {
        key.decode() if key else None for key in UNSOUND
    }

    (stage,) = stage_runs(run.document["flow_run_id"])
    for name in [task_run.name for task_run in task_runs(stage, expected=batches)]:
        assert len(name) <= 270
        assert name.isprintable()
    assert len(bson.encode(run.document)) < 200_000
    assert max(len(bson.encode(step)) for step in run.steps) < 10_000

    again = world.sync(entities=["tenant"], mode="changed")
    confirmed = sum(step["ok"] for step in run.steps)
    assert again.document["totals"]["total"] == count
    assert again.document["stages"][0]["unchanged"] == confirmed
    assert len(again.steps) == count - confirmed


@pytest.mark.parametrize("max_task_runs", ["100", "1"])
def test_the_last_of_all_ids_is_retried_where_it_was_left(
    world: World, monkeypatch: pytest.MonkeyPatch, max_task_runs: str
) -> None:
    monkeypatch.setenv("ADMIN_MAX_TASK_RUNS", max_task_runs)
    world.add("tenant", tenant(_id=1, id="first"), tenant(_id=MaxKey(), id="last"))
    world.hub.misbehave({"key": "last", "attempts": [1], "status": 503})
    run = world.sync(entities=["tenant"])
    assert run.document["status"] == "success"
    assert (run.step("first")["attempts"], run.step("last")["attempts"]) == (1, 2)
    assert world.hub.stats()["requests"] == 3


values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats()
    | st.text()
    | st.binary()
    | st.integers(-(2**63), 2**63 - 1).map(DatetimeMS)
    | st.sampled_from([Regex("x"), Code("x"), Timestamp(1, 2), DBRef("a", 1), Decimal128("NaN")]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text().map(lambda name: name.replace("\0", "")), inner, max_size=3)
    ),
    max_leaves=6,
)
names = st.sampled_from(
    ["id", "name", "version", "updated_at", "deleted_at", "enabled", "logo", "$id", "a.b", ""]
)


@settings(
    max_examples=4, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.lists(st.dictionaries(names, values, max_size=6), min_size=10, max_size=60))
def test_documents_of_any_shape_lose_none_of_the_others(
    world: World, documents: list[Document]
) -> None:
    source = world.database.source_tenants
    source.drop()
    for each in documents:
        with suppress(WriteError):
            source.insert_one({"_id": ObjectId(), **each})
    source.insert_one(tenant(_id="sound", id="sound among odd ones"))
    run = world.sync(entities=["tenant"])
    stored = sorted(str(each["_id"]) for each in source.find({}, {"_id": True}))
    assert sorted(str(step["source_id"]) for step in run.steps) == stored
    assert run.step("sound among odd ones")["ok"]
    assert {code(step) for step in run.steps} <= {IN, INVALID, DUPLICATE}
