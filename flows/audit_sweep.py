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

from flows.artifacts import publish_results_of
from flows.state_mirror import FLOW_NAME, mirror_state
from tasks.settings import MongoSettings, read_mongo_settings
from tasks.trail.audit_trail import audit_trail
from tasks.trail.fields import RunId
from tasks.trail.liveness import UnfinishedRun
from tasks.trail.stages import RunStatus

SILENT_SECONDS: Final = 45.0
"""A run of which nothing was heard for so long has no process any more; it is heard of each 10.

Less than passes from a death to the automation that tells Prefect of it (50 seconds at least).
"""
_BEGUN: Final = [StateType.PENDING, StateType.RUNNING, StateType.CANCELLING]
_IS_BEGUN: Final = FlowRunFilterState(type=FlowRunFilterStateType(any_=_BEGUN))
_GONE: Final = "Its process is gone: nothing was heard of it any more"
_UNKNOWN: Final = "Prefect has no record of this run, and nothing was heard of its process any more"


@flow(name="audit-sweep")
async def audit_sweep() -> State[list[str]]:
    """End the runs whose process is gone, in Prefect and in the audit trail."""
    ended = await asyncio.to_thread(end_dead_runs, read_mongo_settings())
    for flow_run_id in ended:
        get_run_logger().warning("Ended flow run %s, whose process is gone", flow_run_id)
    return Completed(message=f"{len(ended)} runs had no process any more", data=ended)


def end_dead_runs(settings: MongoSettings, silent_seconds: float = SILENT_SECONDS) -> list[str]:
    """End the runs of which nothing was heard for so long; return their flow run ids.

    A run that has ended in Prefect alone ends in the audit trail as it did there.

    Raises:
        MongoError: MongoDB is away, or does not let us.
        httpx.HTTPError: Prefect's API doesn't answer.
    """
    with get_client(sync_client=True) as prefect:
        sweep = _Sweep(prefect, settings, silent_seconds)
        return [suspect.flow_run_id for suspect in sweep.suspects() if sweep.ends(suspect)]


@dataclass(frozen=True)
class _Suspect:
    """A run that has begun and not ended, in Prefect or in the audit trail."""

    flow_run_id: str
    run_id: RunId | None
    flow_run: FlowRun | None
    silent_seconds: float


class _Sweep:
    """A look at all runs that have begun and not ended."""

    def __init__(
        self, prefect: SyncPrefectClient, settings: MongoSettings, silent_seconds: float
    ) -> None:
        self._prefect = prefect
        self._settings = settings
        self._trail = audit_trail(settings)
        self._silent_seconds = silent_seconds

    def suspects(self) -> list[_Suspect]:
        """Return the runs that may have no process any more."""
        begun = {str(flow_run.id): flow_run for flow_run in self._begun()}
        unfinished = self._trail.liveness.unfinished()
        in_trail = [
            _suspect(run, begun.pop(run.flow_run_id, None) or self._flow_run(run.flow_run_id))
            for run in unfinished
        ]
        in_prefect_alone = [
            _Suspect(flow_run_id, None, flow_run, _age(flow_run))
            for flow_run_id, flow_run in begun.items()
        ]
        return in_trail + in_prefect_alone

    def ends(self, suspect: _Suspect) -> bool:
        """End a run if its process is gone; return whether it was."""
        is_silent = suspect.silent_seconds >= self._silent_seconds
        flow_run = suspect.flow_run
        if flow_run is None or flow_run.state is None:
            return is_silent and self._crash_unknown(suspect.run_id)
        state = flow_run.state
        if state.is_final():
            # Prefect may have taken a live run for dead: that one still speaks, and ends itself.
            is_dead = is_silent or not state.is_crashed()
            return is_dead and self._mirror_end(flow_run, state)
        if state.is_paused():
            mirror_state(self._trail, flow_run, state)
        if state.type not in _BEGUN or not is_silent:
            return False
        return self._mirror_end(flow_run, self._ended(flow_run.id, state))

    def _begun(self) -> list[FlowRun]:
        return self._prefect.read_flow_runs(
            flow_filter=FlowFilter(name=FlowFilterName(any_=[FLOW_NAME])),
            flow_run_filter=FlowRunFilter(state=_IS_BEGUN),
        )

    def _flow_run(self, flow_run_id: str) -> FlowRun | None:
        try:
            return self._prefect.read_flow_run(UUID(flow_run_id))
        except ObjectNotFound:
            return None

    def _crash_unknown(self, run_id: RunId | None) -> bool:
        if run_id is not None:
            now = datetime.now(UTC)
            self._trail.counting.end_run(run_id, RunStatus.CRASHED, _UNKNOWN, now)
        return True

    def _ended(self, flow_run_id: UUID, state: State[Any]) -> State[Any]:
        """End a flow run; return its state then, which is another one if it ended by itself."""
        is_cancelling = state.is_cancelling()
        end: State[Any] = Cancelled(message=_GONE) if is_cancelling else Crashed(message=_GONE)
        self._prefect.set_flow_run_state(flow_run_id, end)
        return self._prefect.read_flow_run(flow_run_id).state or end

    def _mirror_end(self, flow_run: FlowRun, state: State[Any]) -> bool:
        if not state.is_final():
            return False
        for stage in self._open_stages(flow_run):
            self._prefect.set_flow_run_state(stage.id, Crashed(message=_GONE))
        mirror_state(self._trail, flow_run, state)
        publish_results_of(flow_run, self._settings)
        return True

    def _open_stages(self, flow_run: FlowRun) -> list[FlowRun]:
        of_run = FlowRunFilterParentFlowRunId(any_=[flow_run.id])
        return self._prefect.read_flow_runs(
            flow_run_filter=FlowRunFilter(parent_flow_run_id=of_run, state=_IS_BEGUN)
        )


def _suspect(run: UnfinishedRun, flow_run: FlowRun | None) -> _Suspect:
    silent = run.silent_seconds if flow_run is None else min(run.silent_seconds, _age(flow_run))
    return _Suspect(run.flow_run_id, run.run_id, flow_run, silent)


def _age(flow_run: FlowRun) -> float:
    """Return for how many seconds a flow run has been in its state; an end is no sign of life."""
    state = flow_run.state
    if state is None or state.is_final():
        return math.inf
    return (datetime.now(UTC) - state.timestamp).total_seconds()
