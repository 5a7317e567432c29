"""A run that is suspended sends nothing more, and goes on where it stopped when it is resumed."""

import time
from pathlib import Path

from prefect.client.schemas.objects import StateType
from prefect.states import Suspended

from tests.integration.executed import executed
from tests.integration.world import PATIENCE_SECONDS, World, wait_until

COUNT = 600
"""So many take 40 seconds while the hub is slow."""
CONCURRENCY = 3
LONG_BATCHES = {"ADMIN_MAX_TASK_RUNS": "3"}
"""A batch lasts as long as its stage."""


def test_suspend_stops_at_once_and_resume_goes_on(world: World, tmp_path: Path) -> None:
    keys = world.add_tenants(COUNT)
    world.hub.misbehave({"delay_ms": 200})
    with executed(world, tmp_path) as deployment:
        flow_run_id = deployment.create()
        with deployment.execute(flow_run_id, **LONG_BATCHES) as suspended:
            wait_until(lambda: len(world.hub.requests()) >= 10)
            deployment.api.set_flow_run_state(flow_run_id, Suspended(timeout_seconds=3600))
            suspended_at = time.time()
            wait_until(lambda: deployment.on_record(flow_run_id)["status"] == "pending")
            assert suspended.wait(PATIENCE_SECONDS) == 0
        sent = world.hub.requests()
        late = [request for request in sent if request["received_at"] > suspended_at + 2]
        assert len(late) <= CONCURRENCY
        assert len(sent) < COUNT
        deployment.api.resume_flow_run(flow_run_id)
        with deployment.execute(flow_run_id, **LONG_BATCHES) as resumed:
            wait_until(lambda: len(world.hub.requests()) >= len(sent) + 10)
            deployment.api.set_flow_run_state(flow_run_id, Suspended(timeout_seconds=3600))
            world.hub.misbehave()
            deployment.api.resume_flow_run(flow_run_id)
            deployment.execute_here(flow_run_id)
            assert resumed.wait(PATIENCE_SECONDS) == 0
        run = deployment.ended(flow_run_id)

    assert run.state.type is StateType.COMPLETED
    assert run.document["status"] == "success"
    assert run.document["totals"] == {"total": COUNT, "success": COUNT, "failed": 0, "skipped": 0}
    assert {stage["status"] for stage in run.document["stages"]} == {"success"}
    keys_sent = [request["key"] for request in world.hub.requests()]
    assert set(keys_sent) == set(keys)
    assert len(keys_sent) - COUNT <= 2 * CONCURRENCY, "it began again from the start"
