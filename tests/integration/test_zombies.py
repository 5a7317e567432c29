"""A process that is no longer the owner of its run sends, records, stops and ends nothing."""

import os
import signal
from pathlib import Path
from subprocess import Popen
from uuid import UUID

from prefect.client.schemas.objects import StateType

from flows.audit_sweep import end_dead_runs
from tasks.settings import read_mongo_settings
from tests.integration.executed import Executed, executed
from tests.integration.served import forget_slots
from tests.integration.world import PATIENCE_SECONDS, World, wait_until

COUNT = 600
"""So many take a minute while the hub is slow."""


def sleep_and_end(
    world: World, run: "Popen[bytes]", deployment: Executed, flow_run_id: UUID
) -> None:
    """Stop the process of a run, which a sweep then ends."""
    os.killpg(run.pid, signal.SIGSTOP)
    world.silence()
    assert end_dead_runs(read_mongo_settings()) == [str(flow_run_id)]
    assert deployment.flow_run(flow_run_id).state_type is StateType.CRASHED
    assert deployment.on_record(flow_run_id)["status"] == "crashed"
    forget_slots()


def test_a_process_that_wakes_after_its_run_was_retried(world: World, tmp_path: Path) -> None:
    keys = world.add_tenants(COUNT)
    world.hub.misbehave({"delay_ms": 300})
    with executed(world, tmp_path) as deployment:
        flow_run_id = deployment.create()
        with deployment.execute(flow_run_id, ADMIN_MAX_TASK_RUNS="3") as sleeper:
            wait_until(lambda: len(world.hub.requests()) >= 30)
            sleep_and_end(world, sleeper, deployment, flow_run_id)
            world.hub.misbehave()
            deployment.retry(flow_run_id)
            with deployment.execute(flow_run_id) as following:
                wait_until(lambda: deployment.on_record(flow_run_id)["attempt"] == 2)
                os.killpg(sleeper.pid, signal.SIGCONT)
                assert sleeper.wait(PATIENCE_SECONDS) == 0
                assert following.wait(PATIENCE_SECONDS) == 0
        run = deployment.ended(flow_run_id)
        assert deployment.log(flow_run_id).count("This process leaves the run") == 1

    assert run.state.type is StateType.COMPLETED
    assert run.document["status"] == "success"
    assert run.document["totals"]["success"] == COUNT
    assert {step["run_attempt"] for step in run.steps} == {1, 2}
    sent = [request["key"] for request in world.hub.requests()]
    assert set(sent) == set(keys)
    assert len(sent) - COUNT <= 100, "two processes sent the same"
