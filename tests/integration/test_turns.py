"""One sync of a database at a time, whatever started it, and whatever an operator deletes."""

import os
import signal
import time
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from uuid import UUID, uuid4

import pytest
from prefect.client.schemas.objects import StateType
from prefect.states import Cancelling, Pending, Running

from flows.audit_sweep import end_dead_runs
from tasks.settings import read_mongo_settings
from tasks.trail.audit_trail import audit_trail
from tasks.trail.runs import RunOptions
from tests.integration.executed import Executed, executed
from tests.integration.served import forget_slots, process
from tests.integration.world import PATIENCE_SECONDS, Hub, World, set_all, wait_until

COUNT = 600
SLOW = {"delay_ms": 300}
"""All `COUNT` items take a minute."""


def waits(deployment: Executed, flow_run_id: UUID) -> bool:
    """Whether a run shows in Prefect and in the audit trail that it waits for another one."""
    state = deployment.flow_run(flow_run_id).state
    run = deployment.on_record(flow_run_id)
    if state is None or state.name != "Waiting":
        return False
    return run["status"] == "pending" and run["message"] == state.message


def test_a_second_sync_waits_whatever_started_the_first(world: World, tmp_path: Path) -> None:
    world.add_tenants(COUNT)
    world.hub.misbehave(SLOW)
    with (
        executed(world, tmp_path) as deployment,
        process(world, "scripts.sync_now", log_path=tmp_path / "sync.log") as first,
    ):
        wait_until(lambda: len(world.hub.requests()) >= 5)
        holder = world.database.sync_runs.find_one({"active": True})
        flow_run_id = deployment.create(entities=["tenant"])
        with deployment.execute(flow_run_id) as second:
            wait_until(lambda: waits(deployment, flow_run_id))
            message = deployment.on_record(flow_run_id)["message"]
            assert message == f"Waits for the sync {holder['_id']} to end"
            sent_before = len(world.hub.requests())
            assert first.poll() is None, "it waited for nothing"
            world.hub.misbehave()
            assert first.wait(PATIENCE_SECONDS) == 0
            assert second.wait(PATIENCE_SECONDS) == 0
        run = deployment.ended(flow_run_id)

    assert run.document["status"] == "success"
    assert sent_before < COUNT
    first_run = world.database.sync_runs.find_one({"_id": holder["_id"]})
    assert run.document["started_at"] >= first_run["finished_at"]
    assert world.hub.stats()["max_in_flight"] == 3


def test_a_run_that_waits_can_be_cancelled(world: World, tmp_path: Path) -> None:
    world.add_seed()
    with executed(world, tmp_path) as deployment:
        trail, options = audit_trail(read_mongo_settings()), RunOptions("a test", ("tenant",))
        other = trail.runs.open(str(uuid4()), "another sync", options)
        assert trail.ownership.take(other, options, datetime.now(UTC))
        flow_run_id = deployment.create()
        with deployment.execute(flow_run_id) as second:
            wait_until(lambda: waits(deployment, flow_run_id))
            deployment.api.set_flow_run_state(flow_run_id, Cancelling())
            cancelled_at = time.monotonic()
            run = deployment.ended(flow_run_id)
            assert time.monotonic() - cancelled_at < 60
            second.wait(PATIENCE_SECONDS)
    assert run.state.type is StateType.CANCELLED
    assert run.document["status"] == "cancelled"
    assert world.hub.requests() == []


def test_a_dead_process_keeps_no_sync_waiting(world: World, tmp_path: Path) -> None:
    world.add_seed()
    with executed(world, tmp_path) as deployment:
        flow_run_id = deployment.create()
        deployment.api.set_flow_run_state(flow_run_id, Running(), force=True)
    trail, options = audit_trail(read_mongo_settings()), RunOptions("a test", ("tenant",))
    dead = trail.runs.open(str(flow_run_id), "a sync of a process that is gone", options)
    assert trail.ownership.take(dead, options, datetime.now(UTC))
    world.silence()
    run = world.sync(entities=["client"])
    assert run.document["status"] == "success"
    statuses = [run["status"] for run in world.database.sync_runs.find().sort("started_at")]
    assert statuses == ["crashed", "success"]


def test_a_flow_run_that_is_deleted_ends_truly_and_leaves_the_turn(
    world: World, tmp_path: Path
) -> None:
    world.add_tenants(COUNT)
    world.hub.misbehave(SLOW)
    with executed(world, tmp_path) as deployment:
        flow_run_id = deployment.create()
        with deployment.execute(flow_run_id, ADMIN_MAX_TASK_RUNS="3") as deleted:
            wait_until(lambda: len(world.hub.requests()) >= 10)
            deployment.api.delete_flow_run(flow_run_id)
            deleted_at = time.time()
            wait_until(lambda: deployment.on_record(flow_run_id)["finished_at"])
            assert deleted.wait(PATIENCE_SECONDS) == 0
    (run,) = world.database.sync_runs.find()
    assert (run["status"], run["message"]) == (
        "cancelled",
        "Cancelled: its flow run was deleted in Prefect",
    )
    steps = list(world.database.sync_steps.find())
    assert run["totals"]["total"] == run["totals"]["success"] == len(steps) < COUNT
    assert world.hub.stats()["stored"]["tenant"] == len(steps)
    late = [r for r in world.hub.requests() if r["received_at"] > deleted_at + 2]
    assert len(late) <= 3
    world.add_seed()
    assert world.sync(entities=["client"]).document["status"] == "success"


def create_with_slot(deployment: Executed) -> UUID:
    """Ask for a run, and give it the slot of its deployment's limit, as a worker does."""
    limit = {"concurrency_limit": 1}
    deployment.api.request("PATCH", f"/deployments/{deployment.deployment_id}", json=limit)
    flow_run_id = deployment.create()
    slot = deployment.api.set_flow_run_state(flow_run_id, Pending()).state
    assert slot is not None
    assert slot.state_details.deployment_concurrency_lease_id
    return flow_run_id


def test_a_run_whose_deployment_is_deleted_ends_truly(world: World, tmp_path: Path) -> None:
    world.add_tenants(60)
    world.hub.misbehave(SLOW)
    with executed(world, tmp_path) as deployment:
        flow_run_id = create_with_slot(deployment)
        with deployment.execute(flow_run_id) as process_of_run:
            wait_until(lambda: len(world.hub.requests()) >= 10)
            deployment.api.delete_deployment(deployment.deployment_id)
            world.hub.misbehave()
            assert process_of_run.wait(PATIENCE_SECONDS) == 0
        run = deployment.ended(flow_run_id)
    assert run.state.type is StateType.COMPLETED
    assert run.document["status"] == "success"


def test_a_dead_run_whose_deployment_is_deleted_is_ended(world: World, tmp_path: Path) -> None:
    world.add_tenants(COUNT)
    world.hub.misbehave(SLOW)
    with executed(world, tmp_path) as deployment:
        flow_run_id = create_with_slot(deployment)
        with deployment.execute(flow_run_id) as killed:
            wait_until(lambda: len(world.hub.requests()) >= 10)
            deployment.api.delete_deployment(deployment.deployment_id)
            os.killpg(killed.pid, signal.SIGKILL)
            killed.wait(PATIENCE_SECONDS)
        forget_slots()
        world.silence()
        assert end_dead_runs(read_mongo_settings()) == [str(flow_run_id)]
        assert deployment.ended(flow_run_id).document["status"] == "crashed"


def test_two_databases_on_one_prefect_server_see_nothing_of_each_other(
    world: World,
    hub: Hub,
    mongodb_uri: str,
    prefect_api_url: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world.add_tenants(COUNT)
    world.hub.misbehave({**SLOW, "entity_type": "tenant"})
    other_stage_1 = replace(hub, base_url=hub.base_url.replace("127.0.0.1", "localhost"))
    staging = World(other_stage_1, mongodb_uri, prefect_api_url)
    staging.add("client", {"id": "a", "version": 1})
    with process(world, "scripts.sync_now", log_path=tmp_path / "sync.log") as production:
        wait_until(lambda: len(world.hub.requests()) >= 5)
        os.killpg(production.pid, signal.SIGSTOP)
        world.silence()
        set_all(monkeypatch, staging.environment)
        assert end_dead_runs(read_mongo_settings()) == []
        assert staging.database.sync_runs.count_documents({}) == 0
        os.killpg(production.pid, signal.SIGCONT)
        run = staging.sync(entities=["client"])
        assert production.poll() is None, "one waited for the other"
        world.hub.misbehave()
        assert production.wait(PATIENCE_SECONDS) == 0
    assert len(run.steps) == 1
    assert [run["status"] for run in world.database.sync_runs.find()] == ["success"]
    assert staging.database.sync_runs.count_documents({}) == 1
    staging.drop()


@pytest.mark.parametrize("state", [Pending(), Running()])
def test_a_run_that_has_not_begun_to_speak_is_left_alone_for_minutes(
    world: World, tmp_path: Path, state: object
) -> None:
    with executed(world, tmp_path) as deployment:
        flow_run_id = deployment.create()
        deployment.api.set_flow_run_state(flow_run_id, state, force=True)
        assert end_dead_runs(read_mongo_settings()) == []
        assert world.database.sync_runs.count_documents({}) == 0


def test_parameters_that_are_edited_before_a_retry(world: World, tmp_path: Path) -> None:
    world.add_seed()
    world.hub.misbehave({"entity_type": "domain", "code": "NOT_FOUND"})
    with executed(world, tmp_path) as deployment:
        flow_run_id = deployment.create(entities=["tenant", "client", "domain"])
        deployment.execute_here(flow_run_id)
        partial = deployment.ended(flow_run_id)
        assert partial.document["status"] == "partial"
        edited = {"parameters": {"entities": ["tenant", "client", "subtenant"]}}
        deployment.api.request("PATCH", f"/flow_runs/{flow_run_id}", json=edited)
        deployment.retry(flow_run_id)
        with deployment.execute(flow_run_id) as second:
            second.wait(PATIENCE_SECONDS)
        run = deployment.ended(flow_run_id)
    stages = {stage["entity_type"]: stage["success"] for stage in run.document["stages"]}
    assert stages == {"tenant": 1, "client": 1, "subtenant": 1, "domain": 0}
    assert run.document["parameters"]["entities"] == ["tenant", "client", "subtenant"]
    assert run.document["totals"] == {"total": 4, "success": 3, "failed": 1, "skipped": 0}
    assert len(run.steps) == 4
    assert run.state.name == "Partial"
    assert run.state.message == "1 of 4 items failed: NOT_FOUND (1)"
