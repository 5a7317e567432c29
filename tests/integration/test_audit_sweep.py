"""A run whose process is gone ends as crashed, and a run that lives is left alone."""

import asyncio
import signal
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import State, StateType
from prefect.states import Cancelling, Crashed, Pending, Running, Suspended

from flows.admin_sync import admin_sync
from flows.audit_sweep import audit_sweep, end_dead_runs
from tasks.settings import read_mongo_settings
from tasks.trail.audit_trail import audit_trail
from tasks.trail.runs import RunOptions
from tests.integration.served import forget_slots, process
from tests.integration.world import PATIENCE_SECONDS, Document, World, wait_until

LONG_AGO = datetime.now(UTC) - timedelta(hours=1)


def state_of(flow_run_id: str) -> StateType | None:
    with get_client(sync_client=True) as api:
        return api.read_flow_run(UUID(flow_run_id)).state_type


def killed_run(world: World, log_path: Path) -> Document:
    """Kill the process of a sync that nobody watches; return the run that it leaves."""
    world.add_tenants(100)
    world.hub.misbehave({"delay_ms": 500})
    with process(world, "scripts.sync_now", log_path=log_path) as sync:
        wait_until(world.database.sync_steps.find_one)
        sync.send_signal(signal.SIGKILL)
        sync.wait(PATIENCE_SECONDS)
    forget_slots()
    world.hub.misbehave()
    return the_run(world)


def the_run(world: World, **match: str) -> Document:
    run: Document | None = world.database.sync_runs.find_one(match)
    assert run is not None
    return run


def forget_the_end(world: World) -> None:
    """Let the run be on record as if the hooks of its end had never run."""
    before = {"status": "running", "finished_at": None, "mirrored_at": None}
    world.database.sync_runs.update_one({}, {"$set": before})


def begin(state: State, deployment: str = "by hand") -> str:
    """Make a flow run that nobody executes, in that state."""
    with get_client(sync_client=True) as api:
        deployment_id = api.create_deployment(api.create_flow(admin_sync), deployment)
        flow_run = api.create_flow_run_from_deployment(deployment_id)
        api.set_flow_run_state(flow_run.id, Pending())
        api.set_flow_run_state(flow_run.id, state)
    return str(flow_run.id)


def test_a_killed_process_ends_as_crashed(world: World, tmp_path: Path) -> None:
    run = killed_run(world, tmp_path / "sync.log")
    flow_run_id = run["flow_run_id"]
    assert run["status"] == "running"
    assert flow_run_id not in end_dead_runs(read_mongo_settings()), "it was heard of a moment ago"
    assert the_run(world)["status"] == "running"

    world.silence()
    assert flow_run_id in end_dead_runs(read_mongo_settings())

    assert state_of(flow_run_id) is StateType.CRASHED
    ended = the_run(world)
    assert ended["status"] == "crashed"
    assert ended["finished_at"] is not None
    steps = list(world.database.sync_steps.find({"run_id": run["_id"]}))
    assert ended["totals"]["total"] == len(steps) > 0
    assert "AwaitingRetry" not in {step["state"] for step in steps}
    stages = [stage["status"] for stage in ended["stages"]]
    assert stages == ["crashed", "pending", "pending", "pending", "pending"]
    assert end_dead_runs(read_mongo_settings()) == []


@pytest.mark.parametrize(
    ("left", "end", "status"),
    [
        (Running(), StateType.CRASHED, "crashed"),
        (Pending(), StateType.CRASHED, "crashed"),
        (Cancelling(), StateType.CANCELLED, "cancelled"),
    ],
)
def test_a_run_of_a_deployment_whose_process_never_spoke(
    world: World, monkeypatch: pytest.MonkeyPatch, left: State, end: StateType, status: str
) -> None:
    monkeypatch.setenv("ADMIN_ENVIRONMENT", "never-spoke")
    flow_run_id = begin(left, deployment="full-never-spoke")
    assert end_dead_runs(read_mongo_settings()) == []
    assert world.database.sync_runs.count_documents({}) == 0
    monkeypatch.setattr("flows.audit_sweep.PATIENCE_SECONDS", -60.0)
    assert end_dead_runs(read_mongo_settings()) == [flow_run_id]
    assert state_of(flow_run_id) is end
    assert the_run(world, flow_run_id=flow_run_id)["status"] == status


def test_a_run_that_prefect_forgot(world: World) -> None:
    world.add_seed()
    run = world.sync()
    with get_client(sync_client=True) as api:
        api.delete_flow_run(UUID(run.document["flow_run_id"]))
    alive = {"$currentDate": {"alive_at": True}}
    world.database.sync_runs.update_one({}, {"$set": {"status": "running"}, **alive})
    assert end_dead_runs(read_mongo_settings()) == []
    world.silence()
    assert world.sync().document["status"] == "success", "the next run ends it, and goes on"
    forgotten = the_run(world, flow_run_id=run.document["flow_run_id"])
    assert forgotten["status"] == "crashed"
    assert "no record" in forgotten["message"]


def test_a_run_that_prefect_has_just_found_dead(world: World) -> None:
    flow_run_id = begin(Running())
    trail = audit_trail(read_mongo_settings())
    run_id = trail.runs.open(flow_run_id, "a run", RunOptions("a test", ("tenant",)))
    assert trail.ownership.take(run_id, RunOptions("a test", ("tenant",)), LONG_AGO)
    world.silence()
    world.set_state(flow_run_id, Crashed())
    assert end_dead_runs(read_mongo_settings()) == [flow_run_id]
    assert the_run(world)["status"] == "crashed"


def test_a_suspended_run_is_neither_running_nor_dead(world: World) -> None:
    run = world.sync()
    forget_the_end(world)
    flow_run_id = run.document["flow_run_id"]
    with get_client(sync_client=True) as api:
        api.set_flow_run_state(UUID(flow_run_id), Suspended(), force=True)
    assert flow_run_id not in end_dead_runs(read_mongo_settings())
    assert state_of(flow_run_id) is StateType.PAUSED
    assert (the_run(world)["status"], the_run(world)["finished_at"]) == ("pending", None)


def test_a_run_whose_last_hook_failed(world: World) -> None:
    world.add_seed()
    run = world.sync()
    forget_the_end(world)
    assert end_dead_runs(read_mongo_settings()) == [run.document["flow_run_id"]]
    assert the_run(world)["status"] == "success"
    assert the_run(world)["totals"]["success"] == 5


def test_a_live_run_that_prefect_takes_for_dead(world: World, tmp_path: Path) -> None:
    world.add_tenants(60)
    world.hub.misbehave({"delay_ms": 500})
    with process(world, "scripts.sync_now", log_path=tmp_path / "sync.log") as sync:
        wait_until(lambda: len(world.hub.requests()) >= 5)
        flow_run_id = the_run(world)["flow_run_id"]
        world.set_state(flow_run_id, Crashed())
        assert flow_run_id not in end_dead_runs(read_mongo_settings())
        assert the_run(world)["status"] == "running"
        assert sync.wait(PATIENCE_SECONDS) == 0
    assert state_of(flow_run_id) is StateType.COMPLETED
    assert the_run(world)["status"] == "success"


def test_nothing_to_do_is_a_success(world: World) -> None:
    assert world.database_name
    state = asyncio.run(audit_sweep(return_state=True))
    assert state.is_completed()
