"""A whole sync on real parts: what reaches the hub, what Prefect says, what the trail holds."""

import asyncio
from datetime import datetime
from itertools import pairwise

import pytest
from prefect.client.schemas.objects import StateType

from flows.admin_sync import admin_sync
from flows.conclusion import SyncIncomplete
from scripts.seed_source import SEED_DOCUMENTS
from tasks.entities import ENTITY_NAMES
from tasks.source.request_id import request_id
from tests.integration.world import World, stage_runs, task_runs

SEED_KEYS = {
    "tenant": "regnum-christi",
    "client": "semperaltius",
    "subtenant": "rcsa",
    "domain": "pagos.semperaltius.edu.mx",
    "branding": "branding_rcsa_001",
}


def test_the_seeds_five_documents(world: World) -> None:
    world.add_seed()
    run = world.sync(trigger="a test")

    assert run.state.is_completed()
    assert run.state.message == "5 of 5 items are in"
    assert [request["key"] for request in world.hub.requests()] == list(SEED_KEYS.values())
    assert world.hub.stats()["stored"] == dict.fromkeys(SEED_KEYS, 1)

    document = run.document
    assert document["status"] == "success"
    assert document["totals"] == {"total": 5, "success": 5, "failed": 0, "skipped": 0}
    assert (document["mode"], document["trigger"]) == ("full", "a test")
    assert document["parameters"] == {
        "mode": "full",
        "dry_run": False,
        "skip_orphans": False,
        "disable_gone": False,
        "entities": ENTITY_NAMES,
        "trigger": "a test",
    }
    assert document["errors"] == []
    assert document["started_at"] <= document["finished_at"]
    assert [stage["entity_type"] for stage in document["stages"]] == ENTITY_NAMES
    assert {stage["status"] for stage in document["stages"]} == {"success"}

    assert [step["entity_type"] for step in run.steps] == ENTITY_NAMES
    for step in run.steps:
        entity_type = step["entity_type"]
        assert step["natural_key"] == SEED_KEYS[entity_type]
        assert step["request_id"] == request_id(entity_type, SEED_KEYS[entity_type], 1)
        assert (step["ok"], step["state"], step["error"]) == (True, "Completed", None)
        assert (step["version"], step["attempts"], step["http_status"]) == (1, 1, 200)
        assert step["flow_run_id"] == document["flow_run_id"]
        assert len(step["sync_id"]) == 32
        assert step["duration_ms"] > 0
        assert isinstance(step["created_at"], datetime)
        assert step["created_at"].tzinfo is not None


def test_prefect_has_a_stage_run_each_and_a_task_run_an_item(world: World) -> None:
    world.add_seed()
    run = world.sync()
    stages = stage_runs(run.document["flow_run_id"])
    assert [stage.name for stage in stages] == ENTITY_NAMES
    assert {stage.state_type for stage in stages} == {StateType.COMPLETED}
    for stage, step in zip(stages, run.steps, strict=True):
        (task_run,) = task_runs(stage, expected=1)
        assert task_run.name == f"{step['entity_type']} {step['natural_key']}"
        assert str(task_run.id) == step["task_run_id"]
        assert task_run.state_name == step["state"]


def test_a_stage_begins_when_the_one_before_it_has_ended(world: World) -> None:
    world.add_seed()
    world.add_tenants(6)
    world.hub.misbehave({"entity_type": "tenant", "delay_ms": 150})
    run = world.sync()
    requests = world.hub.requests()
    last_tenant = max(r["answered_at"] for r in requests if r["entity_type"] == "tenant")
    assert all(r["received_at"] > last_tenant for r in requests if r["entity_type"] != "tenant")
    stages = run.document["stages"]
    for earlier, later in pairwise(stages):
        assert earlier["finished_at"] <= later["started_at"]


def test_a_second_run_sends_the_same_request_ids_and_changes_nothing(world: World) -> None:
    world.add_seed()
    first, second = world.sync(), world.sync()
    assert first.document["_id"] != second.document["_id"]
    assert [step["request_id"] for step in first.steps] == [
        step["request_id"] for step in second.steps
    ]
    assert [step["sync_id"] for step in first.steps] == [step["sync_id"] for step in second.steps]
    assert sum(world.hub.stats()["stored"].values()) == 5


def test_a_subset_runs_in_sync_order(world: World) -> None:
    world.add_seed()
    run = world.sync(entities=["client", "tenant", "client"])
    assert [stage["entity_type"] for stage in run.document["stages"]] == ["tenant", "client"]
    assert list(run.codes()) == ["regnum-christi", "semperaltius"]


@pytest.mark.parametrize("entities", [[], ["tenants"], "tenant"])
def test_wrong_parameters_are_refused(world: World, entities: object) -> None:
    world.add_seed()
    run = world.sync(entities=entities)
    assert run.state.is_failed()
    assert run.document["status"] == "failed"
    assert "entities" in run.document["message"]
    assert world.hub.requests() == []


def test_an_empty_source_is_a_success(world: World) -> None:
    world.database.create_collection("source_tenants")
    run = world.sync()
    assert run.document["status"] == "success"
    assert run.document["totals"]["total"] == 0


def test_a_failed_item_stops_nothing(world: World) -> None:
    world.add_seed()
    world.add("domain", {"host": "lost.example", "tenant_id": "nobody", "version": 1})
    run = world.sync()

    assert run.state.is_failed()
    assert run.state.name == "Partial"
    assert run.state.message == "1 of 6 items failed: NOT_FOUND (1)"
    assert run.document["status"] == "partial"
    assert run.document["totals"] == {"total": 6, "success": 5, "failed": 1, "skipped": 0}
    (error,) = run.document["errors"]
    assert error["entity_type"] == "domain"
    assert (error["natural_key"], error["code"]) == ("lost.example", "NOT_FOUND")
    assert "nobody" in error["message"]
    step = run.step("lost.example")
    assert (step["ok"], step["state"], step["attempts"]) == (False, "Failed", 1)
    assert step["error"]["class"] == "permanent"
    statuses = {stage["entity_type"]: stage["status"] for stage in run.document["stages"]}
    assert statuses == {**dict.fromkeys(ENTITY_NAMES, "success"), "domain": "partial"}
    stage_states = {stage.name: stage.state_name for stage in stage_runs(str(step["flow_run_id"]))}
    assert stage_states == {**dict.fromkeys(ENTITY_NAMES, "Completed"), "domain": "Partial"}


def test_a_total_failure(world: World) -> None:
    world.add_seed()
    world.hub.misbehave({"code": "VALIDATION_ERROR", "message": "no"})
    run = world.sync()
    assert run.state.name == "Failed"
    assert run.document["status"] == "failed"
    assert run.document["totals"] == {"total": 5, "success": 0, "failed": 5, "skipped": 0}


def test_called_as_a_function_it_returns_totals_or_raises(world: World) -> None:
    world.add_seed()
    totals = asyncio.run(admin_sync())
    assert totals.success == 5
    world.hub.misbehave({"key": "rcsa", "code": "NOT_FOUND", "message": "no"})
    with pytest.raises(SyncIncomplete, match=r"1 of 5 items failed: NOT_FOUND \(1\)") as raised:
        asyncio.run(admin_sync())
    assert raised.value.totals.failed == 1


def test_more_items_than_task_runs_go_in_batches(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ADMIN_MAX_TASK_RUNS", "7")
    monkeypatch.setenv("ADMIN_CONCURRENCY", "5")
    keys = world.add_tenants(61)
    faults = [
        {"key": keys[3], "attempts": [1], "status": 503},
        {"key": keys[40], "code": "NOT_FOUND", "message": "no"},
    ]
    world.hub.misbehave(*faults)
    run = world.sync(entities=["tenant"])

    assert run.document["totals"] == {"total": 61, "success": 60, "failed": 1, "skipped": 0}
    assert {key: code for key, code in run.codes().items() if code} == {keys[40]: "NOT_FOUND"}
    sent = [request["key"] for request in world.hub.requests()]
    assert sorted(sent) == sorted([*keys, keys[3]])
    (stage,) = stage_runs(run.document["flow_run_id"])
    found = task_runs(stage, expected=5)
    assert {task_run.name for task_run in found} == {
        f"tenant batch {number} of 5" for number in range(1, 6)
    }
    assert sum(task_run.run_count for task_run in found) == 6


def test_at_most_concurrency_requests_are_in_flight(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ADMIN_CONCURRENCY", "4")
    world.add_tenants(40)
    world.hub.misbehave({"delay_ms": 200})
    world.sync(entities=["tenant"])
    assert world.hub.stats()["max_in_flight"] == 4


def test_indexes_are_there(world: World) -> None:
    world.database.sync_steps.create_index([("request_id", 1), ("ok", 1)])  # of older versions
    world.sync()
    indexes = [
        (list(index["key"]), index.get("unique", False))
        for collection in (
            world.database.sync_runs,
            world.database.sync_steps,
            world.database.sync_items,
        )
        for index in collection.list_indexes()
    ]
    assert (["flow_run_id"], True) in indexes
    assert (["run_id", "entity_type", "source_id"], True) in indexes
    assert (["run_id", "created_at", "_id"], False) in indexes
    assert (["run_id", "entity_type", "error.class", "created_at", "_id"], False) in indexes
    assert (["entity_type", "natural_key", "created_at", "_id"], False) in indexes
    assert (["entity_type", "natural_key", "hub"], True) in indexes
    assert (["request_id", "ok"], False) not in indexes


def test_the_seeds_queries_work_as_written(world: World) -> None:
    world.add_seed()
    world.hub.misbehave({"entity_type": "branding", "code": "NOT_FOUND"})
    run_id = world.sync().document["_id"]
    database = world.database
    assert database.sync_runs.find().sort({"started_at": -1}).limit(5)[0]["_id"] == run_id
    steps = list(database.sync_steps.find({"run_id": run_id}).sort({"created_at": 1}))
    assert [step["entity_type"] for step in steps] == list(SEED_DOCUMENTS)
    (failed,) = database.sync_steps.find({"run_id": run_id, "ok": False})
    assert failed["natural_key"] == SEED_KEYS["branding"]
