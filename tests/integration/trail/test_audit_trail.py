"""`audit_trail`: the indexes that it makes, and how long MongoDB keeps steps."""

import uuid
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
from pymongo import MongoClient, ReadPreference
from pymongo.database import Database

from tasks.mongo import database, trail_database
from tasks.mongo_errors import MongoRefused, MongoUnavailable
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
        "active": True,
    }
    assert keys(backoffice.sync_steps.index_information()) == {
        "_id": False,
        "run_id, entity_type, source_id": True,
        "run_id, created_at, _id": False,
        "run_id, ok, created_at, _id": False,
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


def test_an_index_that_is_used_no_more_is_dropped(backoffice: Database[Document]) -> None:
    backoffice.sync_steps.create_index([("request_id", 1), ("ok", 1)])
    audit_trail(read_mongo_settings())
    assert "request_id, ok" not in keys(backoffice.sync_steps.index_information())


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


def test_mongodb_keeps_steps_as_long_as_each_process_says_anew(
    backoffice: Database[Document], monkeypatch: pytest.MonkeyPatch
) -> None:
    for days in ("", "30", "7", "7", ""):
        monkeypatch.setenv("ADMIN_STEPS_RETENTION_DAYS", days)
        audit_trail.cache_clear()
        audit_trail(read_mongo_settings())
        seconds_kept = {
            name: index["expireAfterSeconds"]
            for name, index in backoffice.sync_steps.index_information().items()
            if "expireAfterSeconds" in index
        }
        assert seconds_kept == ({"steps_expire": int(days) * 86_400} if days else {})


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


def test_an_index_that_is_there_otherwise_is_told(backoffice: Database[Document]) -> None:
    backoffice.sync_runs.create_index("flow_run_id")
    with pytest.raises(MongoRefused, match="the index flow_run_id_1 is there with other options"):
        audit_trail(read_mongo_settings())


def test_runs_that_stand_twice_are_told(backoffice: Database[Document]) -> None:
    backoffice.sync_runs.insert_many([{"flow_run_id": "marked"}, {"flow_run_id": "marked"}])
    with pytest.raises(
        MongoRefused, match=r"sync_runs holds another .* index flow_run_id_1"
    ) as raised:
        audit_trail(read_mongo_settings())
    assert "marked" not in str(raised.value)


def test_a_mongodb_that_is_away_is_told_without_its_uri(monkeypatch: pytest.MonkeyPatch) -> None:
    away = "mongodb://user:marked@127.0.0.1:9/?serverSelectionTimeoutMS=300"
    monkeypatch.setenv("MONGODB_URI", away)
    with pytest.raises(MongoUnavailable, match="check MONGODB_URI") as raised:
        audit_trail(read_mongo_settings())
    assert "marked" not in str(raised.value)
