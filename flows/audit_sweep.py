"""Ends runs whose process is gone: no run says `running` for ever, and none blocks the next."""

import asyncio
from collections.abc import Iterator
from datetime import datetime, timedelta
from enum import Enum, auto
from typing import Any, Final
from uuid import UUID

from prefect import flow, get_run_logger
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import (
    DeploymentFilter,
    DeploymentFilterName,
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
from flows.ending import cancel_in_trail
from flows.orders import leased_slot_of, time_of
from flows.state_mirror import FLOW_NAME, mirror_state
from tasks.errors import FLOW_RUN_DELETED
from tasks.settings import MongoSettings, read_environment_settings, read_mongo_settings
from tasks.trail.audit_trail import audit_trail
from tasks.trail.ownership import UnfinishedRun
from tasks.trail.runs import SyncMode
from tasks.trail.stages import RunStatus

PATIENCE_SECONDS: Final = 300.0
"""How long a process may take from its start until it is first heard of."""
_BEGUN: Final = [StateType.PENDING, StateType.RUNNING, StateType.CANCELLING]
_IS_BEGUN: Final = FlowRunFilterState(type=FlowRunFilterStateType(any_=_BEGUN))
_MILLISECOND: Final = timedelta(milliseconds=1)
_GONE: Final = "Its process is gone: nothing was heard of it any more"
_UNKNOWN: Final = "Prefect has no record of this run, and nothing was heard of its process any more"


@flow(name="audit-sweep")
async def audit_sweep() -> State[list[str]]:
    """End the runs of this database whose process is gone, in Prefect and in the audit trail."""
    ended = await asyncio.to_thread(end_dead_runs, read_mongo_settings())
    for flow_run_id in ended:
        get_run_logger().warning("Ended flow run %s, whose process is gone", flow_run_id)
    return Completed(message=f"{len(ended)} runs had no process any more", data=ended)


def end_dead_runs(settings: MongoSettings) -> list[str]:
    """End the runs of a database whose process is gone; return their flow run ids.

    A run that has ended in Prefect alone ends in the audit trail as it did there.

    Raises:
        MongoError: MongoDB is away, or does not let us.
        SettingsError: `ADMIN_ENVIRONMENT` is malformed.
        httpx.HTTPError: Prefect's API doesn't answer.
    """
    with get_client(sync_client=True) as prefect:
        sweep = _Sweep(prefect, settings)
        return [*sweep.end_runs_on_record(), *sweep.end_runs_without_record()]


class Verdict(Enum):
    """Act of a sweep on a run that has begun and not ended."""

    LET_BE = auto()
    MIRROR = auto()
    """Carry the state that it has in Prefect into the audit trail."""
    END = auto()
    """End it: its process is gone."""


def verdict(run: UnfinishedRun | None, state: State[Any], now: datetime) -> Verdict:
    """Decide about a run of which nothing is heard; by Prefect's clock if nothing ever was.

    Args:
        run: the run on record; None where its process has not begun one.
        state: its state in Prefect.
        now: the time by Prefect's clock.
    """
    if state.is_final() or state.is_paused():
        return Verdict.MIRROR
    if state.type not in _BEGUN:
        return Verdict.LET_BE
    has_fallen_silent = run is not None and run.is_silent
    is_starting = not has_fallen_silent or state.is_pending() or _has_begun_anew(run, state)
    has_patience = is_starting and (now - state.timestamp).total_seconds() < PATIENCE_SECONDS
    return Verdict.LET_BE if has_patience else Verdict.END


def _has_begun_anew(run: UnfinishedRun | None, state: State[Any]) -> bool:
    """Whether a run is running since a later time than is on record, to the millisecond."""
    known = run.mirrored_at if run else None
    return state.is_running() and (known is None or state.timestamp - known >= _MILLISECOND)


class _Sweep:
    """A look at all runs of a database that have begun and not ended."""

    def __init__(self, prefect: SyncPrefectClient, settings: MongoSettings) -> None:
        self._prefect = prefect
        self._settings = settings
        self._trail = audit_trail(settings)
        self._now = time_of(prefect.hello().headers)
        self._seen: set[str] = set()

    def end_runs_on_record(self) -> Iterator[str]:
        """End the runs in the audit trail that have no process; yield their flow run ids."""
        for run in self._trail.ownership.unfinished():
            self._seen.add(run.flow_run_id)
            if not run.is_heard and self._end_if_gone(run):
                yield run.flow_run_id

    def end_runs_without_record(self) -> Iterator[str]:
        """End the runs of our deployments that died before their process began its record."""
        for flow_run in self._begun_of_deployments():
            is_seen = str(flow_run.id) in self._seen
            if not is_seen and flow_run.state and self._judge(None, flow_run, flow_run.state):
                yield str(flow_run.id)

    def _end_if_gone(self, run: UnfinishedRun) -> bool:
        """End a run of which nothing is heard if its process is gone; return whether it ended."""
        flow_run = self._flow_run(run.flow_run_id)
        if flow_run is not None and flow_run.state is not None:
            return self._judge(run, flow_run, flow_run.state)
        self._end_unknown(run)
        return True

    def _judge(self, run: UnfinishedRun | None, flow_run: FlowRun, state: State[Any]) -> bool:
        """Do with a run what the verdict says; return whether it has ended by that."""
        match verdict(run, state, self._now):
            case Verdict.LET_BE:
                return False
            case Verdict.MIRROR:
                return self._mirror(flow_run, state)
            case Verdict.END:
                self._free_slot_of_deleted(flow_run)
                return self._mirror(flow_run, self._ended(flow_run.id, state))

    def _end_unknown(self, run: UnfinishedRun) -> None:
        """End a run that Prefect doesn't know."""
        if run.is_silent:
            self._trail.counting.end_run(run.run_id, RunStatus.CRASHED, _UNKNOWN, None)
        else:
            cancel_in_trail(self._trail, run.run_id, FLOW_RUN_DELETED)

    def _begun_of_deployments(self) -> list[FlowRun]:
        named = read_environment_settings().named
        ours = DeploymentFilterName(any_=[named(mode.value) for mode in SyncMode])
        return self._prefect.read_flow_runs(
            flow_filter=FlowFilter(name=FlowFilterName(any_=[FLOW_NAME])),
            deployment_filter=DeploymentFilter(name=ours),
            flow_run_filter=FlowRunFilter(state=_IS_BEGUN),
        )

    def _flow_run(self, flow_run_id: str) -> FlowRun | None:
        try:
            return self._prefect.read_flow_run(UUID(flow_run_id))
        except (ObjectNotFound, ValueError):  # an id that is no UUID is none of Prefect's
            return None

    def _free_slot_of_deleted(self, flow_run: FlowRun) -> None:
        """Give a run's slot back where its deployment was deleted: Prefect takes no end else."""
        if flow_run.deployment_id and (lease_id := leased_slot_of(flow_run)):
            try:
                self._prefect.read_deployment(flow_run.deployment_id)
            except ObjectNotFound:
                self._prefect.release_concurrency_slots_with_lease(lease_id)

    def _ended(self, flow_run_id: UUID, state: State[Any]) -> State[Any]:
        """End a flow run; return its state then, which is another one if it ended by itself."""
        is_cancelling = state.is_cancelling()
        end: State[Any] = Cancelled(message=_GONE) if is_cancelling else Crashed(message=_GONE)
        self._prefect.set_flow_run_state(flow_run_id, end)
        return self._prefect.read_flow_run(flow_run_id).state or end

    def _mirror(self, flow_run: FlowRun, state: State[Any]) -> bool:
        """Carry a state into the audit trail; return whether the run has ended by that."""
        if state.is_final():
            for stage in self._open_stages(flow_run):
                self._prefect.set_flow_run_state(stage.id, Crashed(message=_GONE))
        mirror_state(self._trail, flow_run, state)
        if state.is_final():
            publish_results_of(flow_run, self._settings)
        return state.is_final()

    def _open_stages(self, flow_run: FlowRun) -> list[FlowRun]:
        of_run = FlowRunFilterParentFlowRunId(any_=[flow_run.id])
        return self._prefect.read_flow_runs(
            flow_run_filter=FlowRunFilter(parent_flow_run_id=of_run, state=_IS_BEGUN)
        )
