"""Late runs: of the runs of a schedule that are due at once, one runs for all of them."""

from typing import Any, Final
from uuid import UUID

from prefect import get_run_logger
from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterCreatedBy,
    FlowRunFilterExpectedStartTime,
    FlowRunFilterState,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.client.schemas.responses import SetStateStatus
from prefect.states import Cancelled

from flows.conclusion import SKIPPED
from flows.orders import time_of
from flows.state_mirror import current_flow_run

_BY_SCHEDULE: Final = "SCHEDULE"
"""Prefect's word for what made a run that a schedule asked for."""


async def skip_late_runs(prefect: PrefectClient) -> None:
    """Skip the other runs of this run's schedule that are due: they asked for what it does.

    They pile up while no worker is up, or while another sync takes long.

    Raises:
        httpx.HTTPError: Prefect's API doesn't answer.
    """
    flow_run = current_flow_run()
    schedule_id = _schedule_of(flow_run)
    if schedule_id is None:
        return
    due = await _due_of(prefect, schedule_id)
    skip: State[Any] = Cancelled(
        name=SKIPPED, message=f"The run {flow_run.name} does what it asked for"
    )
    skipped = 0
    while some := await _give_state(prefect, due, skip):
        skipped += some
    if skipped:
        get_run_logger().info("Skipped %d runs of this schedule that were due, too", skipped)


def _schedule_of(flow_run: FlowRun) -> UUID | None:
    maker = flow_run.created_by
    return maker.id if maker is not None and maker.type == _BY_SCHEDULE else None


async def _due_of(prefect: PrefectClient, schedule_id: UUID) -> FlowRunFilter:
    now = time_of((await prefect.hello()).headers)
    return FlowRunFilter(
        state=FlowRunFilterState(type=FlowRunFilterStateType(any_=[StateType.SCHEDULED])),
        expected_start_time=FlowRunFilterExpectedStartTime.model_validate({"before_": now}),
        created_by=FlowRunFilterCreatedBy(id_=[schedule_id]),
    )


async def _give_state(prefect: PrefectClient, which: FlowRunFilter, state: State[Any]) -> int:
    """Give a page of flow runs a state; return how many have it now."""
    flow_runs = await prefect.read_flow_runs(flow_run_filter=which)
    results = [await prefect.set_flow_run_state(flow_run.id, state) for flow_run in flow_runs]
    return sum(result.status is SetStateStatus.ACCEPT for result in results)
