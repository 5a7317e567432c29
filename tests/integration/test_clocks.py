"""Nothing that is decided depends on the clock of a process: it may be ten minutes off."""

from pathlib import Path

from prefect.client.schemas.objects import StateType
from prefect.states import Cancelling

from flows.audit_sweep import end_dead_runs
from tasks.settings import read_mongo_settings
from tests.integration.executed import executed
from tests.integration.world import PATIENCE_SECONDS, World, wait_until

COUNT = 600
"""So many take a minute while the hub is slow."""


def test_cancel_and_retry_with_clocks_that_are_off(world: World, tmp_path: Path) -> None:
    world.add_tenants(COUNT)
    world.hub.misbehave({"delay_ms": 300})
    with executed(world, tmp_path) as deployment:
        flow_run_id = deployment.create()
        for seconds, at_request in (("600", 10), ("-600", 30)):
            with deployment.execute(flow_run_id, shifted_by=seconds) as cancelled:
                wait_until(lambda at_request=at_request: len(world.hub.requests()) >= at_request)
                assert end_dead_runs(read_mongo_settings()) == []
                deployment.api.set_flow_run_state(flow_run_id, Cancelling())
                cancelled.wait(PATIENCE_SECONDS)
            run = deployment.ended(flow_run_id)
            assert (run.state.type, run.document["status"]) == (StateType.CANCELLED, "cancelled")
            assert len(world.hub.requests()) < COUNT
            deployment.retry(flow_run_id)
        world.hub.misbehave()
        deployment.execute_here(flow_run_id)
        run = deployment.ended(flow_run_id)
    assert (run.state.type, run.document["status"]) == (StateType.COMPLETED, "success")
    assert run.document["totals"]["success"] == COUNT
