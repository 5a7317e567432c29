"""Ends runs whose process is gone: no run says `running` for ever, and none blocks the next."""

import asyncio
import math
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final
from uuid import UUID

from prefect import flow, get_run_logger
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import (
    FlowFilter,
    FlowFilterName,
    FlowRunFilter,
    FlowRunFilterParentFlowRunId,
    FlowRunFilterState,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.exceptions import ObjectNotFound
from prefect.states import Cancelled, Completed, Crashed

from flows.dashboard import publish_results_of
from flows.state_mirror import FLOW_NAME, mirror_state
from tasks.settings import read_mongo_settings
from tasks.trail.audit import RunStatus, UnfinishedRun, audit_trail

SILENT_SECONDS: Final = 45.0
"""A run of which nothing was heard for so long has no process any more; it is heard of each 10.

Less than passes from a death to the automation that tells Prefect of it (50 seconds at least).
"""
_BEGUN: Final = [StateType.PENDING, StateType.RUNNING, StateType.CANCELLING]
_GONE: Final = "Its process is gone: nothing was heard of it any more"
_UNKNOWN: Final = "Prefect has no record of this run, and nothing was heard of its process any more"


@flow(name="audit-sweep")
async def audit_sweep() -> State[list[str]]:
    """End the runs whose process is gone, in Prefect and in the audit trail."""
    ended = await asyncio.to_thread(end_dead_runs)
    for flow_run_id in ended:
        get_run_logger().warning("Ended flow run %s, whose process is gone", flow_run_id)
    return Completed(message=f"{len(ended)} runs had no process any more", data=ended)


def end_dead_runs(silent_seconds: float = SILENT_SECONDS) -> list[str]:
    """End the runs of which nothing was heard for so long; return their flow run ids.

    A run that has ended in Prefect alone ends in the audit trail as it did there.

    Raises:
        MongoUnavailable: MongoDB doesn't answer.
        httpx.HTTPError: Prefect's API doesn't answer.
    """
    with get_client(sync_client=True) as prefect:
        return [
            suspect.flow_run_id
            for suspect in _suspects(prefect)
            if _end_if_dead(prefect, suspect, silent_seconds)
        ]


@dataclass(frozen=True)
class _Suspect:
    """A run that has begun and not ended, in Prefect or in the audit trail."""

    flow_run_id: str
    flow_run: FlowRun | None
    silent_seconds: float


def _suspects(prefect: SyncPrefectClient) -> list[_Suspect]:
    begun = {str(flow_run.id): flow_run for flow_run in _begun(prefect)}
    unfinished = audit_trail(read_mongo_settings()).unfinished()
    in_trail = [
        _suspect(run, begun.pop(run.flow_run_id, None) or _flow_run(prefect, run.flow_run_id))
        for run in unfinished
    ]
    in_prefect_alone = [
        _Suspect(flow_run_id, flow_run, _age(flow_run)) for flow_run_id, flow_run in begun.items()
    ]
    return in_trail + in_prefect_alone


def _begun(prefect: SyncPrefectClient) -> list[FlowRun]:
    return prefect.read_flow_runs(
        flow_filter=FlowFilter(name=FlowFilterName(any_=[FLOW_NAME])),
        flow_run_filter=FlowRunFilter(state=_in(_BEGUN)),
    )


def _in(types: list[StateType]) -> FlowRunFilterState:
    return FlowRunFilterState(type=FlowRunFilterStateType(any_=types))


def _flow_run(prefect: SyncPrefectClient, flow_run_id: str) -> FlowRun | None:
    try:
        return prefect.read_flow_run(UUID(flow_run_id))
    except ObjectNotFound:
        return None


def _suspect(run: UnfinishedRun, flow_run: FlowRun | None) -> _Suspect:
    silent = run.silent_seconds if flow_run is None else min(run.silent_seconds, _age(flow_run))
    return _Suspect(run.flow_run_id, flow_run, silent)


def _age(flow_run: FlowRun) -> float:
    """Return for how many seconds a flow run has been in its state; an end is no sign of life."""
    state = flow_run.state
    if state is None or state.is_final():
        return math.inf
    return (datetime.now(UTC) - state.timestamp).total_seconds()


def _end_if_dead(prefect: SyncPrefectClient, suspect: _Suspect, silent_seconds: float) -> bool:
    is_silent = suspect.silent_seconds >= silent_seconds
    flow_run = suspect.flow_run
    if flow_run is None or flow_run.state is None:
        return is_silent and _crash_unknown(suspect.flow_run_id)
    state = flow_run.state
    if state.is_final():
        # Prefect may have taken a live run for dead: that one still speaks, and will end itself.
        return (is_silent or not state.is_crashed()) and _mirror(prefect, flow_run, state)
    if state.is_paused():
        mirror_state(flow_run, state)
    if state.type not in _BEGUN or not is_silent:
        return False
    return _mirror(prefect, flow_run, _ended(prefect, flow_run.id, state))


def _crash_unknown(flow_run_id: str) -> bool:
    trail = audit_trail(read_mongo_settings())
    trail.mirror_run(flow_run_id, RunStatus.CRASHED, _UNKNOWN, datetime.now(UTC))
    return True


def _ended(prefect: SyncPrefectClient, flow_run_id: UUID, state: State[Any]) -> State[Any]:
    """Let a flow run end; return its state then, which is another one if it ended by itself."""
    end: State[Any] = Cancelled(message=_GONE) if state.is_cancelling() else Crashed(message=_GONE)
    prefect.set_flow_run_state(flow_run_id, end)
    return prefect.read_flow_run(flow_run_id).state or end


def _mirror(prefect: SyncPrefectClient, flow_run: FlowRun, state: State[Any]) -> bool:
    if not state.is_final():
        return False
    for stage in _open_stages(prefect, flow_run):
        prefect.set_flow_run_state(stage.id, Crashed(message=_GONE))
    mirror_state(flow_run, state)
    publish_results_of(flow_run)
    return True


def _open_stages(prefect: SyncPrefectClient, flow_run: FlowRun) -> list[FlowRun]:
    return prefect.read_flow_runs(
        flow_run_filter=FlowRunFilter(
            parent_flow_run_id=FlowRunFilterParentFlowRunId(any_=[flow_run.id]), state=_in(_BEGUN)
        )
    )
