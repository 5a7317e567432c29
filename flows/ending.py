"""Ends stages and runs that have come to their end: in the audit trail, and as Prefect states."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, Final

import httpx
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import State
from prefect.exceptions import Abort, Pause
from prefect.states import Cancelled

from flows.artifacts import publish_results_of
from flows.conclusion import SyncIncomplete, conclusion, status_of
from flows.state_mirror import current_flow_run
from tasks.errors import FLOW_RUN_DELETED, RUN_CANCELLED, RUN_FORGOTTEN, StopReason
from tasks.mongo_errors import MongoError
from tasks.run import Run
from tasks.trail.audit_trail import AuditTrail
from tasks.trail.fields import RunId
from tasks.trail.stages import RunStatus, StageTotals, Tally

_TERMINATED: Final = "Its process was terminated"


def end_stage(run: Run, entity_type: str, tally: Tally) -> State[StageTotals]:
    """Record how a stage ended, and return its Prefect state.

    Raises:
        Abort: this process has to leave the run.
        MongoError: MongoDB is away, or does not let us.
    """
    reason = _reason_on_record(run, entity_type)
    state = conclusion(tally, reason, is_dry_run=run.options.dry_run)
    run.tallies[entity_type] = tally
    run.trail.stages.end(run.attempt, entity_type, status_of(state), tally.totals, state.timestamp)
    return state


def end_run(run: Run) -> State[StageTotals]:
    """Return the Prefect state of a run whose stages have ended: it is their sum.

    Raises:
        Abort: this process has to leave the run.
        MongoError: MongoDB is away, or does not let us.
    """
    reason = _reason_on_record(run)
    tally = sum(run.tallies.values(), run.trail.counting.tally_besides(run.id, run.tallies))
    state = conclusion(tally, reason, is_dry_run=run.options.dry_run)
    if state.is_cancelled():  # Prefect calls no hook where a flow itself says so.
        message, number = state.message or "", run.attempt.number
        run.trail.counting.end_run(run.id, RunStatus.CANCELLED, message, None, number)
        publish_results_of(current_flow_run(), run.settings)
    return state


def _reason_on_record(run: Run, entity_type: str | None = None) -> StopReason | None:
    """Return why a run or a stage was stopped; one whose document was deleted has one again."""
    reason = run.stop_switch.reason(entity_type)
    if reason == RUN_FORGOTTEN:
        run.restore_record()
    return reason


@contextmanager
def ended_on_record(run: Run) -> Iterator[None]:
    """End the run in the audit trail where the block ends so that Prefect may call no hook.

    That is where its flow run was deleted, or its process is terminated.
    """
    try:
        yield
    except Abort:
        if run.stop_switch.left_because == FLOW_RUN_DELETED:
            cancel_in_trail(run.trail, run.id, FLOW_RUN_DELETED)
        raise
    except (Exception, Pause):
        raise
    except BaseException:
        with suppress(MongoError, httpx.HTTPError):
            _end_terminated(run)
        raise


def _end_terminated(run: Run) -> None:
    """End a run whose process is terminated; where it is so because of a cancellation, as that."""
    with get_client(sync_client=True) as prefect:
        state = prefect.read_flow_run(current_flow_run().id).state
        if state is not None and state.is_cancelling():
            prefect.set_flow_run_state(current_flow_run().id, Cancelled())
            cancel_in_trail(run.trail, run.id, RUN_CANCELLED)
            return
    number = run.attempt.number
    run.trail.counting.end_run(run.id, RunStatus.CRASHED, _TERMINATED, None, number)


def cancel_in_trail(trail: AuditTrail, run_id: RunId, reason: StopReason) -> None:
    """End a run in the audit trail of which Prefect will not tell the end."""
    trail.counting.end_run(run_id, RunStatus.CANCELLED, f"Cancelled: {reason.message}", None)


async def raise_unless_ended(stage: State[Any]) -> None:
    """Let an exception in our own code that broke a stage off end the run too.

    Raises:
        Exception: the exception of the stage.
    """
    if stage.is_cancelled():
        return
    outcome = await stage.aresult(raise_on_failure=False)
    if isinstance(outcome, BaseException) and not isinstance(outcome, SyncIncomplete):
        raise outcome
