"""Ends stages and runs that have come to their end: in the audit trail, and as Prefect states."""

from typing import Any

from prefect.client.schemas.objects import State

from flows.artifacts import publish_results_of
from flows.conclusion import SyncIncomplete, conclusion, status_of
from flows.state_mirror import current_flow_run, mirror_state
from tasks.run import Run
from tasks.trail.stages import StageTotals, Tally


def end_stage(run: Run, entity_type: str, tally: Tally) -> State[StageTotals]:
    """Record how a stage ended, and return its Prefect state.

    Raises:
        MongoError: MongoDB is away, or does not let us.
    """
    state = conclusion(tally, run.stopped_because(entity_type), is_dry_run=run.options.dry_run)
    run.tallies[entity_type] = tally
    run.trail.stages.end(run.id, entity_type, status_of(state), tally.totals, state.timestamp)
    return state


def end_run(run: Run) -> State[StageTotals]:
    """Return the Prefect state of a run whose stages have ended: it is their sum.

    Raises:
        MongoError: MongoDB is away, or does not let us.
    """
    tally = sum(run.tallies.values(), Tally())
    state = conclusion(tally, run.stopped_because(), is_dry_run=run.options.dry_run)
    if state.is_cancelled():  # Prefect calls no hook where a flow itself says so.
        mirror_state(run.trail, current_flow_run(), state)
        publish_results_of(current_flow_run(), run.settings)
    return state


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
