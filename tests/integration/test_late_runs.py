"""Runs of a schedule that nobody has run in time: one of them runs, once a worker is back."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

from prefect.client.schemas.filters import (
    DeploymentFilter,
    DeploymentFilterId,
    FlowRunFilter,
    FlowRunFilterExpectedStartTime,
)
from prefect.client.schemas.objects import FlowRun
from prefect.client.schemas.schedules import IntervalSchedule
from prefect.client.schemas.sorting import FlowRunSort

from tests.integration.executed import Executed, executed
from tests.integration.world import World, wait_until

LATE = 4
TOLD_LATE = timedelta(seconds=3)


@contextmanager
def scheduled_each_second(deployment: Executed) -> Iterator[None]:
    each_second = IntervalSchedule(interval=timedelta(seconds=1))
    (schedule,) = deployment.api.create_deployment_schedules(
        deployment.deployment_id, [(each_second, True)]
    )
    try:
        yield
    finally:
        deployment.api.delete_deployment_schedule(deployment.deployment_id, schedule.id)


def runs_of(deployment: Executed, due: FlowRunFilter | None = None) -> list[FlowRun]:
    return deployment.api.read_flow_runs(
        deployment_filter=DeploymentFilter(id=DeploymentFilterId(any_=[deployment.deployment_id])),
        flow_run_filter=due,
        sort=FlowRunSort.EXPECTED_START_TIME_ASC,
    )


def due_by_schedule(deployment: Executed) -> list[FlowRun]:
    """Return the runs that are due whatever Prefect's API says, which tells its time late."""
    then = datetime.now(UTC) - TOLD_LATE
    due = FlowRunFilter(expected_start_time=FlowRunFilterExpectedStartTime(before_=then))
    return [run for run in runs_of(deployment, due) if run.auto_scheduled]


def test_of_several_late_runs_of_a_schedule_one_runs(world: World, tmp_path: Path) -> None:
    world.add_tenants(1)
    with executed(world, tmp_path) as deployment, scheduled_each_second(deployment):
        asked_for = deployment.create(entities=["tenant"])
        late = wait_until(
            lambda: due if len(due := due_by_schedule(deployment)) > LATE else None,
            poll_seconds=0.5,
        )
        first = late[0].id
        with deployment.execute(first):
            deployment.ended(first)
        states = {run.id: run.state for run in runs_of(deployment)}

    skipped = [states[run.id] for run in late[1:]]
    assert {(state.type.value, state.name) for state in skipped if state} == {
        ("CANCELLED", "Skipped")
    }
    (run,) = world.database.sync_runs.find()
    assert (run["flow_run_id"], run["status"], run["trigger"]) == (
        str(first),
        "success",
        "schedule",
    )
    (waiting,) = [state for run_id, state in states.items() if run_id == asked_for]
    assert waiting is not None
    assert waiting.is_scheduled(), "what somebody asked for is not skipped"
