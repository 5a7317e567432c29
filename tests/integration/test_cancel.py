"""A run that is cancelled stops sending at once, and what was sent is on record."""

import time
from pathlib import Path

from prefect.client.schemas.objects import StateType
from prefect.states import Cancelling

from tests.integration.served import process, served
from tests.integration.world import PATIENCE_SECONDS, World, wait_until

CONCURRENCY = 3
SLOW = {"delay_ms": 1000}
"""All 200 items take a minute and more."""


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
    world.hub.misbehave(SLOW)
    with served(world, tmp_path / "serve.log") as deployment:
        flow_run_id = deployment.start()
        wait_until(lambda: len(world.hub.requests()) >= 5)
        world.set_state(str(flow_run_id), Cancelling())
        cancelled_at = time.time()
        run = deployment.ended(flow_run_id)
    assert run.state.type is StateType.CANCELLED
    assert_cancelled(world)
    late = [r for r in world.hub.requests() if r["received_at"] > cancelled_at]
    assert len(late) <= 20 * CONCURRENCY, "it went on for 20 seconds"


def test_of_a_process_that_no_worker_watches(world: World, tmp_path: Path) -> None:
    world.add_tenants(200)
    world.hub.misbehave(SLOW)
    with process(world, "scripts.sync_now", log_path=tmp_path / "sync.log") as sync:
        wait_until(lambda: len(world.hub.requests()) >= 5)
        world.set_state(world.database.sync_runs.find_one()["flow_run_id"], Cancelling())
        assert sync.wait(PATIENCE_SECONDS) == 1
    assert_cancelled(world)
