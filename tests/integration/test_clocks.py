"""Nothing that is decided depends on the clock of a process: it may be ten minutes off."""

from pathlib import Path

import pytest
from prefect.client.schemas.objects import StateType
from prefect.states import Cancelling

from flows.audit_sweep import end_dead_runs
from tasks.settings import read_mongo_settings
from tests.integration.executed import executed
from tests.integration.world import PATIENCE_SECONDS, World, wait_until


@pytest.mark.parametrize("seconds", ["600", "-600"])
def test_cancel_then_retry_with_a_clock_that_is_off(
    world: World, tmp_path: Path, seconds: str
) -> None:
    keys = world.add_tenants(600)
    world.hub.misbehave({"delay_ms": 300})
    with executed(world, tmp_path) as deployment:
        flow_run_id = deployment.create()
        with deployment.execute(flow_run_id, shifted_by=seconds) as cancelled:
            wait_until(lambda: len(world.hub.requests()) >= 10)
            assert end_dead_runs(read_mongo_settings()) == []
            deployment.api.set_flow_run_state(flow_run_id, Cancelling())
            cancelled.wait(PATIENCE_SECONDS)
        run = deployment.ended(flow_run_id)
        assert (run.state.type, run.document["status"]) == (StateType.CANCELLED, "cancelled")
        assert len(world.hub.requests()) < len(keys)

        world.hub.misbehave()
        deployment.retry(flow_run_id)
        with deployment.execute(flow_run_id) as following:
            following.wait(PATIENCE_SECONDS)
        run = deployment.ended(flow_run_id)
    assert (run.state.type, run.document["status"]) == (StateType.COMPLETED, "success")
    assert run.document["totals"]["success"] == len(keys)
