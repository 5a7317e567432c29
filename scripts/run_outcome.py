"""Tells what came of a run that has ended: totals, what is not in, what changed, where it is."""

from dataclasses import dataclass
from typing import Any, Final

from prefect.client.schemas.objects import FlowRun, State
from prefect.utilities.urls import url_for
from rich.text import Text

from flows.state_mirror import mirror_state
from scripts.item_changes import ItemChanges, item_changes, most_urgent, others_not_in
from scripts.item_tables import changes_table
from scripts.run_progress import console
from scripts.run_tables import failure_table, literal, print_table, stage_table, status_text
from tasks.mongo_errors import MongoError
from tasks.settings import MongoSettings
from tasks.trail.audit_trail import audit_trail
from tasks.trail.history import run_history
from tasks.trail.item_history import item_history
from tasks.trail.runs import RunErrorRecord, RunRecord
from tasks.trail.stages import RunStatus
from tasks.trail.steps import StepRecord

_SHOWN: Final = 20


@dataclass(frozen=True)
class RunOutcome:
    """A run that has ended, as the audit trail has it.

    `would_fail` is of a dry run, which changes no item; of another one are `changes`, and `others`
    that it did not bring in.
    """

    run: RunRecord
    changes: ItemChanges | None = None
    others: tuple[RunErrorRecord, ...] = ()
    would_fail: tuple[StepRecord, ...] = ()


def tell_outcome(settings: MongoSettings, flow_run: FlowRun, state: State[Any]) -> int:
    """Print what a run came to that has ended in that state; 0 when every item is in, else 1."""
    outcome = _outcome_of(settings, flow_run, state)
    if outcome is not None:
        _tell_items(outcome)
    status = outcome.run.status if outcome else RunStatus.FAILED
    run_id = outcome.run.id if outcome else "none: the run is not in the audit trail"
    console.print(Text.assemble(status_text(status), ": ", literal(state.message or "")))
    console.print(f"run_id    {run_id}")
    console.print(f"dashboard {url_for(flow_run)}", soft_wrap=True)
    return 0 if state.is_completed() else 1


def _outcome_of(settings: MongoSettings, flow_run: FlowRun, state: State[Any]) -> RunOutcome | None:
    try:
        run = _run_of(settings, flow_run, state)
        if run is None:
            return None
        if run.dry_run:
            failures = run_history(settings).failures(run.id, _SHOWN)
            return RunOutcome(run, would_fail=tuple(most_urgent(failures, _SHOWN)))
        changes = item_changes(item_history(settings), run)
        others = others_not_in(run, changes)[:_SHOWN]
        return RunOutcome(run, changes.first(_SHOWN), tuple(others))
    except MongoError:
        return None


def _run_of(settings: MongoSettings, flow_run: FlowRun, state: State[Any]) -> RunRecord | None:
    history = run_history(settings)
    run = history.run_of(str(flow_run.id))
    is_ended = run is not None and run.finished_at is not None
    if is_ended or not state.is_final():
        return run
    # Its process may be about to do so. Of a run that had not begun, nobody else does.
    mirror_state(audit_trail(settings), flow_run, state)
    return history.run_of(str(flow_run.id))


def _tell_items(outcome: RunOutcome) -> None:
    print_table(stage_table(outcome.run))
    if outcome.would_fail:
        print_table(failure_table(outcome.would_fail, title="Would fail", caption=None))
    if outcome.changes is not None and (outcome.others or outcome.changes.is_there_any):
        print_table(changes_table(outcome.changes, outcome.others))
