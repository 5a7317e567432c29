"""What Prefect says of a run and what the audit trail says: each made from the other."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

from prefect import Flow
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.context import FlowRunContext
from prefect.states import Cancelled, Completed, Failed

from tasks.entities import ENTITY_NAMES, in_sync_order
from tasks.errors import StopReason
from tasks.run import Sender
from tasks.settings import read_mongo_settings
from tasks.trail.audit import (
    RunAttempt,
    RunId,
    RunOptions,
    RunStatus,
    SyncMode,
    Totals,
    audit_trail,
)

FLOW_NAME: Final = "admin-sync"
"""Name of the flow whose runs are mirrored."""
MANUAL: Final = "manual"
"""What triggered a run of which nobody said it."""
SCHEDULE: Final = "schedule"
"""What triggered a run that a Prefect schedule made."""
PARTIAL: Final = "Partial"
"""Name of the failed state of a run or stage of which some items are in."""
STOPPED: Final = "Stopped"
"""Name of the failed state of a run or stage that was stopped before all was sent."""


class SyncIncomplete(RuntimeError):
    """A run or a stage has come to its end, and not every item is in."""

    def __init__(self, message: str, totals: Totals) -> None:
        super().__init__(message)
        self.totals = totals

    def __reduce__(self) -> tuple[type["SyncIncomplete"], tuple[str, Totals]]:
        return type(self), (str(self), self.totals)


_STATUS_BY_TYPE: Final = {
    StateType.PAUSED: RunStatus.PENDING,
    StateType.RUNNING: RunStatus.RUNNING,
    StateType.COMPLETED: RunStatus.SUCCESS,
    StateType.FAILED: RunStatus.FAILED,
    StateType.CANCELLING: RunStatus.CANCELLED,
    StateType.CANCELLED: RunStatus.CANCELLED,
    StateType.CRASHED: RunStatus.CRASHED,
}


def mirror_run(flow: Flow[..., Any], flow_run: FlowRun, state: State[Any]) -> None:
    """State hook: carry the state of an `admin-sync` flow run into its `sync_runs` document."""
    mirror_state(flow_run, state)


def mirror_state(flow_run: FlowRun, state: State[Any]) -> None:
    """Carry a state of an `admin-sync` flow run into its `sync_runs` document.

    Raises:
        MongoUnavailable: MongoDB doesn't answer or doesn't let us in.
    """
    open_run_of(flow_run)
    audit_trail(read_mongo_settings()).mirror_run(
        str(flow_run.id), status_of(state), state.message or "", state.timestamp
    )


def open_run_of(flow_run: FlowRun) -> RunId:
    """Find or create the `sync_runs` document of an `admin-sync` flow run; returns its key.

    Raises:
        MongoUnavailable: MongoDB doesn't answer or doesn't let us in.
    """
    return audit_trail(read_mongo_settings()).open_run(
        str(flow_run.id), flow_run.name, options_of(flow_run)
    )


def begin_current_run(options: RunOptions) -> RunAttempt:
    """Begin the next attempt of the flow run that runs here, in its own `sync_runs` document.

    Raises:
        MongoUnavailable: MongoDB doesn't answer or doesn't let us in.
    """
    flow_run = current_flow_run()
    asked = replace(options, trigger=trigger_of(flow_run))
    trail = audit_trail(read_mongo_settings())
    return trail.begin_attempt(trail.open_run(str(flow_run.id), flow_run.name, asked))


def current_flow_run() -> FlowRun:
    """Return the flow run that runs here, with the values of all its parameters."""
    context = FlowRunContext.get()
    if context is None or context.flow_run is None or context.parameters is None:
        raise LookupError("there is no current flow run")
    return context.flow_run.model_copy(update={"parameters": context.parameters})


def options_of(flow_run: FlowRun) -> RunOptions:
    """Return what was asked of a run; Prefect's records may lack what is a default."""
    asked = flow_run.parameters
    return RunOptions(
        trigger=trigger_of(flow_run),
        entities=tuple(in_sync_order(asked.get("entities", ENTITY_NAMES))),
        mode=SyncMode(asked.get("mode", SyncMode.FULL)),
        dry_run=asked.get("dry_run", False),
        skip_orphans=asked.get("skip_orphans", False),
    )


def trigger_of(flow_run: FlowRun) -> str:
    """Return who or what asked for a run, by its parameter, else by what Prefect knows."""
    trigger: str = flow_run.parameters.get("trigger", MANUAL)
    # Not a parameter of the schedule: Prefect 3.9 forgets those when a schedule is switched on.
    return SCHEDULE if trigger == MANUAL and flow_run.auto_scheduled else trigger


def mirror_stage(flow: Flow[..., Any], flow_run: FlowRun, state: State[Any]) -> None:
    """State hook: carry the state of a stage's flow run into its entry of `sync_runs.stages`."""
    audit_trail(read_mongo_settings()).mirror_stage(
        RunId(flow_run.parameters["run_id"]),
        flow_run.parameters["entity_type"],
        status_of(state),
        state.timestamp,
    )


def status_of(state: State[Any]) -> RunStatus:
    """Return the audit trail's word for a Prefect state."""
    if state.is_failed() and state.name == PARTIAL:
        return RunStatus.PARTIAL
    return _STATUS_BY_TYPE[state.type]


def conclusion(sender: Sender, entity_type: str | None = None) -> State[Totals]:
    """Return the Prefect state of a run, or one of its stages, that has come to its end."""
    totals, failures = sender.audit.tally(sender.run_id, entity_type)
    if sender.is_cancelled():
        return Cancelled(message=f"Cancelled: {_in_words(totals)}", data=totals)
    if sender.is_dry_run:
        return dry_state(totals)
    return concluding_state(totals, failures, sender.stopped_because())


def concluding_state(
    totals: Totals, failures: Mapping[str, int], stopped_because: StopReason | None
) -> State[Totals]:
    """Return the Prefect state of a run or stage that has come to its end.

    Args:
        totals: its items by outcome.
        failures: how many items are not in, by error code.
        stopped_because: why the run was stopped, None where it was not.
    """
    if totals.status is RunStatus.SUCCESS:
        return Completed(message=_in_words(totals), data=totals)
    not_sent = totals.skipped - totals.unchanged
    skipped = f" and {not_sent} were skipped" if not_sent else ""
    counts = ", ".join(f"{code} ({count})" for code, count in failures.items())
    message = f"{totals.failed} of {totals.total} items failed{skipped}: {counts}"
    if stopped_because is not None:
        message = f"Stopped by {stopped_because.message}. {message}"
    name = _failed_state_name(totals, is_stopped=stopped_because is not None)
    return Failed(name=name, message=message, data=SyncIncomplete(message, totals))


def _in_words(totals: Totals) -> str:
    unchanged = f", {totals.unchanged} of them unchanged and not sent" if totals.unchanged else ""
    return f"{totals.items_in} of {totals.total} items are in{unchanged}"


def dry_state(totals: Totals) -> State[Totals]:
    """Return the Prefect state of a dry run, or a stage of it, that has come to its end."""
    would_send = totals.skipped - totals.unchanged
    message = f"Dry run: {would_send} of {totals.total} items would be sent"
    if totals.unchanged:
        message += f", {totals.unchanged} are unchanged"
    if totals.failed:
        message += f", {totals.failed} would fail"
    return Completed(message=message, data=totals)


def _failed_state_name(totals: Totals, *, is_stopped: bool) -> str | None:
    if is_stopped:
        return STOPPED
    return PARTIAL if totals.status is RunStatus.PARTIAL else None


async def raise_unless_settled(stage: State[Any]) -> None:
    """Let an exception in our own code that ended a stage end the run too.

    Raises:
        Exception: the stage did not come to its totals.
    """
    if stage.is_cancelled():
        return
    outcome = await stage.aresult(raise_on_failure=False)
    if isinstance(outcome, BaseException) and not isinstance(outcome, SyncIncomplete):
        raise outcome
