"""`audit_trail`: the indexes that it makes, and how long MongoDB keeps steps."""

import uuid
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

import pytest
from pymongo import MongoClient, ReadPreference
from pymongo.database import Database

from tasks.mongo import database, trail_database
from tasks.mongo_errors import MongoUnavailable
from tasks.settings import read_mongo_settings
from tasks.trail.audit_trail import audit_trail
from tasks.trail.item_writes import failure_of
from tests.trail_documents import HUB, OPTIONS, failure, item_key, left_alone, new_step

Document = dict[str, Any]
Indexes = Mapping[str, Any]


@pytest.fixture
def backoffice(
    mongodb_uri: str, client: MongoClient[Document], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Database[Document]]:
    """A database that the settings name, and that nobody has used."""
    name = f"trail_{uuid.uuid4().hex[:12]}"
    monkeypatch.setenv("MONGODB_URI", mongodb_uri)
    monkeypatch.setenv("MONGODB_DB", name)
    yield client[name]
    client.drop_database(name)


def keys(indexes: Indexes) -> dict[str, bool]:
    return {
        ", ".join(field for field, _ in index["key"]): index.get("unique", False)
        for index in indexes.values()
    }


def test_a_database_that_nobody_has_used_gets_its_indexes(backoffice: Database[Document]) -> None:
    trail = audit_trail(read_mongo_settings())
    assert keys(backoffice.sync_runs.index_information()) == {
        "_id": False,
        "flow_run_id": True,
        "started_at, _id": False,
        "status, started_at, _id": False,
        "stages.entity_type, started_at, _id": False,
        "counted_at, _id": False,
        "active": True,
    }
    assert keys(backoffice.sync_steps.index_information()) == {
        "_id": False,
        "run_id, entity_type, source_id": True,
        "run_id, created_at, _id": False,
        "run_id, entity_type, error.class, created_at, _id": False,
        "run_id, duration_ms, _id": False,
        "run_id, error.code, created_at, _id": False,
        "entity_type, natural_key, created_at, _id": False,
        "run_id, task_run_id": False,
    }
    assert keys(backoffice.sync_items.index_information()) == {
        "_id": False,
        "entity_type, natural_key, hub": True,
        "hub, entity_type, not_in_since": False,
        "hub, entity_type, gone_since": False,
        "recovered.run_id": False,
    }
    assert audit_trail(read_mongo_settings()) is trail


def test_indexes_that_are_used_no_more_are_dropped(backoffice: Database[Document]) -> None:
    backoffice.sync_steps.create_index([("request_id", 1), ("ok", 1)])
    backoffice.sync_runs.create_index("active", unique=True)
    audit_trail(read_mongo_settings())
    assert "request_id_1_ok_1" not in backoffice.sync_steps.index_information()
    assert "active_1" not in backoffice.sync_runs.index_information()


@pytest.mark.usefixtures("backoffice")
@pytest.mark.parametrize(
    "preference", ["readPreference=secondaryPreferred", "readConcernLevel=available"]
)
def test_the_trail_is_read_from_the_primary_whatever_the_uri_prefers(
    mongodb_uri: str, monkeypatch: pytest.MonkeyPatch, preference: str
) -> None:
    monkeypatch.setenv("MONGODB_URI", f"{mongodb_uri}/?{preference}")
    settings = read_mongo_settings()
    items = trail_database(settings)["sync_items"]
    assert items.read_preference == ReadPreference.PRIMARY
    assert items.read_concern.level == "majority"
    source = database(settings)["source_tenants"]
    follows = (source.read_preference.mongos_mode, source.read_concern.level)
    assert follows in [("secondaryPreferred", None), ("primary", "available")]


def test_mongodb_keeps_steps_as_long_as_the_last_process_said_that_says_it(
    backoffice: Database[Document], monkeypatch: pytest.MonkeyPatch
) -> None:
    for days, says in [("", ""), ("30", "30"), ("7", "7"), ("", "7"), ("0", ""), ("", "")]:
        monkeypatch.setenv("ADMIN_STEPS_RETENTION_DAYS", days)
        audit_trail.cache_clear()
        audit_trail(read_mongo_settings())
        seconds_kept = {
            name: index["expireAfterSeconds"]
            for name, index in backoffice.sync_steps.index_information().items()
            if "expireAfterSeconds" in index
        }
        assert seconds_kept == ({"steps_expire": int(says) * 86_400} if says else {})


def test_runs_steps_and_items_are_written_where_the_settings_say(
    backoffice: Database[Document],
) -> None:
    trail = audit_trail(read_mongo_settings())
    run_id = trail.runs.open("a flow run", "its name", OPTIONS)
    write = failure_of(item_key("1"), 1, failure(run_id=run_id), requests=1, not_taken=None)
    trail.buffer.record(new_step(run_id), write)
    assert trail.counting.tally(run_id, "tenant", left_alone(1)).totals.total == 2
    assert backoffice.sync_runs.count_documents({}) == 1
    assert backoffice.sync_steps.count_documents({"run_id": run_id}) == 1
    assert backoffice.sync_items.count_documents({"last.run_id": run_id}) == 1
    assert set(trail.items.known(HUB, "tenant", ["1"])) == {"1"}


def test_an_index_that_is_there_otherwise_is_told_and_stops_nothing(
    backoffice: Database[Document], caplog: pytest.LogCaptureFixture
) -> None:
    backoffice.sync_runs.create_index("flow_run_id")
    trail = audit_trail(read_mongo_settings())
    assert "goes without its index flow_run_id_1" in caplog.text
    run_id = trail.runs.open("a flow run", "its name", OPTIONS)
    assert trail.runs.open("a flow run", "its name", OPTIONS) == run_id


@pytest.mark.parametrize(
    ("collection", "twin", "index"),
    [
        ("sync_runs", {"note": "no run"}, "flow_run_id_1"),
        ("sync_runs", {"flow_run_id": "twice"}, "flow_run_id_1"),
        ("sync_steps", {"run_id": 1, "entity_type": "tenant", "source_id": 2}, "run_id_1_entity"),
        ("sync_items", {"hub": "h", "entity_type": "tenant", "natural_key": "k"}, "entity_type_1"),
    ],
)
def test_documents_that_stand_twice_are_told_with_their_key_and_stop_nothing(
    backoffice: Database[Document],
    caplog: pytest.LogCaptureFixture,
    collection: str,
    twin: Document,
    index: str,
) -> None:
    backoffice[collection].insert_many([dict(twin), dict(twin)])
    trail = audit_trail(read_mongo_settings())
    (told,) = [line for line in caplog.messages if "goes without" in line]
    assert f"{backoffice.name}.{collection} goes without its unique index {index}" in told
    for value in twin.values():
        assert value == "no run" or repr(value) in told
    run_id = trail.runs.open("a flow run", "its name", OPTIONS)
    trail.buffer.record(new_step(run_id))
    assert trail.counting.tally(run_id, "tenant", left_alone(0)).totals.total == 1

    backoffice[collection].delete_one(twin)
    caplog.clear()
    audit_trail.cache_clear()
    audit_trail(read_mongo_settings())
    assert caplog.messages == []


def test_documents_that_are_no_runs_take_no_turn(backoffice: Database[Document]) -> None:
    backoffice.sync_runs.insert_many([{"active": True}, {"active": True, "flow_run_id": 5}])
    trail = audit_trail(read_mongo_settings())
    run_id = trail.runs.open("a flow run", "its name", OPTIONS)
    assert trail.ownership.holder() is None
    assert trail.ownership.take(run_id, OPTIONS, datetime.now(UTC)) is not None
    assert trail.ownership.holder() == run_id


def test_a_mongodb_that_is_away_is_told_without_its_uri(monkeypatch: pytest.MonkeyPatch) -> None:
    away = "mongodb://user:marked@127.0.0.1:9/?serverSelectionTimeoutMS=300"
    monkeypatch.setenv("MONGODB_URI", away)
    with pytest.raises(MongoUnavailable, match="check MONGODB_URI") as raised:
        audit_trail(read_mongo_settings())
    assert "marked" not in str(raised.value)
