"""Mode `changed`: only what Stage 1 does not hold as it is is sent; the rest is counted."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from pymongo.collection import Collection

from tests.integration.world import Document, SyncRun, World, wait_until


@pytest.fixture(autouse=True)
def _small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ADMIN_MAX_TASK_RUNS", "10")


def counts(run: SyncRun) -> tuple[int, int, int, int]:
    totals = run.document["totals"]
    return totals["total"], totals["success"], totals["failed"], totals["skipped"]


def keys_sent(world: World) -> list[str | None]:
    return [request["key"] for request in world.hub.requests()]


def changed(world: World, **parameters: Any) -> SyncRun:
    world.hub.reset()
    return world.sync(**{"entities": ["tenant"], "mode": "changed", **parameters})


def test_the_first_run_sends_everything_and_the_next_one_nothing(world: World) -> None:
    keys = world.add_tenants(60)
    first = changed(world)
    assert counts(first) == (60, 60, 0, 0)
    second = changed(world)
    assert keys_sent(world) == []
    assert counts(second) == (60, 0, 0, 60)
    assert second.steps == []
    assert second.document["mode"] == "changed"
    assert second.document["status"] == "success"
    (stage,) = second.document["stages"]
    assert (stage["status"], stage["total"], stage["skipped"]) == ("success", 60, 60)
    assert stage["unchanged"] == len(keys)
    assert second.state.message == "60 of 60 items are in, 60 of them unchanged and not sent"


def test_one_item_a_batch_is_decided_like_many(world: World) -> None:
    world.add_seed()
    assert counts(world.sync()) == (5, 5, 0, 0)
    assert counts(changed(world, entities=["tenant", "domain"])) == (2, 0, 0, 2)
    assert keys_sent(world) == []


def test_what_is_new_has_changed_or_failed_is_sent(world: World) -> None:
    keys = world.add_tenants(60)
    world.hub.misbehave(
        {"key": keys[5], "code": "NOT_FOUND", "message": "no"},
        {"key": keys[6], "status": 401, "code": "NOT_FOUND", "message": "no"},
    )
    world.sync(entities=["tenant"])
    source = world.database.source_tenants
    source.update_one({"id": keys[9]}, {"$inc": {"version": 1}})
    world.add("tenant", {"id": "new", "name": "New", "version": 1})

    run = changed(world)

    assert sorted(map(str, keys_sent(world))) == sorted([keys[5], keys[6], keys[9], "new"])
    assert counts(run) == (61, 4, 0, 57)


def test_a_failure_beside_unchanged_items_is_partial(world: World) -> None:
    keys = world.add_tenants(60)
    world.sync(entities=["tenant"])
    world.database.source_tenants.update_one({"id": keys[0]}, {"$set": {"version": 2}})
    world.hub.reset()
    world.hub.misbehave({"key": keys[0], "code": "NOT_FOUND", "message": "no"})
    run = world.sync(entities=["tenant"], mode="changed")
    assert counts(run) == (60, 0, 1, 59)
    assert run.document["status"] == "partial"
    assert run.state.message == "1 of 60 items failed: NOT_FOUND (1)"


def test_a_retried_batch_counts_what_is_unchanged_once(world: World) -> None:
    keys = world.add_tenants(60)
    world.sync(entities=["tenant"])
    world.database.source_tenants.update_many({"id": {"$in": keys[:2]}}, {"$set": {"version": 2}})
    world.hub.reset()
    world.hub.misbehave({"key": keys[1], "attempts": [1], "status": 503})
    run = world.sync(entities=["tenant"], mode="changed")
    assert counts(run) == (60, 2, 0, 58)
    assert keys_sent(world) == [keys[0], keys[1], keys[1]]


def test_documents_without_a_version_are_known_by_time_or_content(world: World) -> None:
    source: Collection[Document] = world.database.source_tenants
    now = datetime.now(UTC)
    world.add("tenant", {"id": "by-time", "name": "T", "updated_at": now})
    world.add("tenant", {"id": "by-content", "name": "C"})
    world.add("tenant", {"id": "float", "name": "F", "version": 3.0})
    assert counts(changed(world)) == (3, 3, 0, 0)
    assert counts(changed(world)) == (3, 0, 0, 3)
    source.update_one({"id": "by-time"}, {"$set": {"updated_at": now + timedelta(seconds=1)}})
    source.update_one({"id": "by-content"}, {"$set": {"name": "D"}})
    source.update_one({"id": "float"}, {"$set": {"version": 4}})
    assert counts(changed(world)) == (3, 3, 0, 0)


def test_what_cannot_be_sent_fails_in_every_run(world: World) -> None:
    world.add(
        "tenant", {"id": "nameless", "version": 1}, {"id": "odd", "name": "O", "version": "x"}
    )
    world.add("tenant", *({"id": "twice", "name": "T", "version": n} for n in (1, 2)))
    failed = {("nameless", "VALIDATION_ERROR"), ("odd", "VALIDATION_ERROR")}
    failed |= {("twice", "DUPLICATE_KEY")}
    for expected in (4, 1, 3, 0), (4, 0, 3, 1):
        run = changed(world)
        assert counts(run) == expected
        not_in = [step for step in run.steps if not step["ok"]]
        assert {(step["natural_key"], step["error"]["code"]) for step in not_in} == failed


def test_steps_expire_when_a_retention_is_set_and_the_items_stay_known(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = world.add_tenants(12)
    monkeypatch.setenv("ADMIN_STEPS_RETENTION_DAYS", "30")
    changed(world)
    steps = world.database.sync_steps
    expiry = steps.index_information()["steps_expire"]
    assert (expiry["key"], expiry["expireAfterSeconds"]) == ([("updated_at", 1)], 30 * 86_400)
    long_ago = datetime.now(UTC) - timedelta(days=31)
    steps.update_many({"natural_key": keys[3]}, {"$set": {"updated_at": long_ago}})
    world.database.client.admin.command("setParameter", 1, ttlMonitorSleepSecs=1)
    wait_until(lambda: steps.count_documents({}) == 11)

    run = changed(world)

    assert keys_sent(world) == []
    assert counts(run) == (12, 0, 0, 12)
    monkeypatch.setenv("ADMIN_STEPS_RETENTION_DAYS", "60")
    changed(world)
    assert steps.index_information()["steps_expire"]["expireAfterSeconds"] == 60 * 86_400
    monkeypatch.delenv("ADMIN_STEPS_RETENTION_DAYS")
    changed(world)
    assert steps.index_information()["steps_expire"]["expireAfterSeconds"] == 60 * 86_400
    monkeypatch.setenv("ADMIN_STEPS_RETENTION_DAYS", "0")
    changed(world)
    assert "steps_expire" not in steps.index_information()
