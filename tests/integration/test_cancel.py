"""A run that is cancelled stops sending at once, and what was sent is on record."""

import time
from pathlib import Path

from prefect.client.schemas.objects import StateType
from prefect.states import Cancelling

from tests.integration.served import process, served
from tests.integration.world import World, wait_until


def assert_cancelled(world: World) -> None:
    (run,) = world.database.sync_runs.find()
    steps = list(world.database.sync_steps.find({"run_id": run["_id"]}))
    assert run["status"] == "cancelled"
    assert run["finished_at"] is not None
    assert run["totals"]["total"] == len(steps)
    assert run["totals"]["success"] == sum(step["ok"] for step in steps)
    assert {stage["status"] for stage in run["stages"]} <= {"cancelled", "pending"}
    in_hub = world.hub.stats()["stored"]["tenant"]
    assert 0 < run["totals"]["success"] <= in_hub < 200


def test_of_a_deployment(world: World, tmp_path: Path) -> None:
    world.add_tenants(200)
    world.hub.misbehave({"delay_ms": 200})
    with served(world, tmp_path / "serve.log") as deployment:
        flow_run_id = deployment.start()
        wait_until(lambda: len(world.hub.requests()) >= 5)
        deployment.prefect("flow-run", "cancel", str(flow_run_id))
        cancelled_at = time.time()
        run = deployment.ended(flow_run_id)
    assert run.state.type is StateType.CANCELLED
    assert_cancelled(world)
    last = max(request["received_at"] for request in world.hub.requests())
    assert last - cancelled_at < 2.5


def test_of_a_process_that_no_worker_watches(world: World, tmp_path: Path) -> None:
    world.add_tenants(200)
    world.hub.misbehave({"delay_ms": 200})
    with process(world, "scripts.sync_now", log_path=tmp_path / "sync.log") as sync:
        wait_until(lambda: len(world.hub.requests()) >= 5)
        world.set_state(world.database.sync_runs.find_one()["flow_run_id"], Cancelling())
        assert sync.wait(30) == 1
    assert_cancelled(world)
