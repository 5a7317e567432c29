"""Carries Prefect's states of `admin-sync` flow runs into `sync_runs`."""

from dataclasses import replace
from datetime import datetime
from typing import Any, Final

from prefect import Flow
from prefect.client.schemas.objects import FlowRun, State
from prefect.context import FlowRunContext

from flows.conclusion import status_of
from tasks.entities import ENTITY_NAMES, in_sync_order
from tasks.settings import read_mongo_settings
from tasks.trail.audit_trail import AuditTrail, audit_trail
from tasks.trail.fields import RunAttempt, RunId
from tasks.trail.runs import RunOptions, SyncMode
from tasks.trail.stages import RunStatus

FLOW_NAME: Final = "admin-sync"
"""Name of the flow whose runs are mirrored."""
MANUAL: Final = "manual"
"""Trigger of a run that names none."""
SCHEDULE: Final = "schedule"
"""Trigger of a run that a Prefect schedule made."""
_DATABASE_TAG: Final = "database:"


def database_tag(database: str) -> str:
    """Return the tag of a flow run that was asked for a database of that name."""
    return f"{_DATABASE_TAG}{database}"


def is_for_database(flow_run: FlowRun, database: str) -> bool:
    """Whether a flow run is for a database of that name; one that names none is for any."""
    named = [tag for tag in flow_run.tags if tag.startswith(_DATABASE_TAG)]
    return not named or database_tag(database) in named


_begun_here: Final[dict[RunId, int]] = {}
"""Number of the attempt that this process has begun of a run: its hooks tell of that one alone."""


def begun_here(attempt: RunAttempt) -> None:
    """Note that this process has begun an attempt, whose end its state hooks then tell."""
    _begun_here[attempt.run_id] = attempt.number


def mirror_run(flow: Flow[..., Any], flow_run: FlowRun, state: State[Any]) -> None:
    """State hook: carry the state of an `admin-sync` flow run into its `sync_runs` document."""
    settings = read_mongo_settings()
    if is_for_database(flow_run, settings.mongodb_database):
        mirror_state(audit_trail(settings), flow_run, state)


def mirror_state(trail: AuditTrail, flow_run: FlowRun, state: State[Any]) -> None:
    """Carry an end or a suspension of an `admin-sync` flow run into its `sync_runs` document.

    That it runs, its own process notes.

    Raises:
        MongoError: MongoDB is away, or does not let us.
    """
    run_id = open_run_of(trail, flow_run)
    status, message, at = status_of(state), state.message or "", state.timestamp
    if status.is_terminal:
        name = None if state.is_cancelling() else state.name
        trail.counting.end_run(run_id, status, message, at, _begun_here.get(run_id), name)
    elif status is RunStatus.PENDING:
        trail.ownership.suspend(run_id, message, at, state.name or status.state_name)


def open_run_of(trail: AuditTrail, flow_run: FlowRun) -> RunId:
    """Find or create the `sync_runs` document of an `admin-sync` flow run; returns its key.

    Raises:
        MongoError: MongoDB is away, or does not let us.
    """
    return trail.runs.open(str(flow_run.id), flow_run.name, options_of(flow_run))


def open_current_run(trail: AuditTrail, options: RunOptions) -> tuple[RunId, RunOptions]:
    """Find or create the `sync_runs` document of the flow run that runs here.

    Returns its key, and the options with who or what asked for them.

    Raises:
        MongoError: MongoDB is away, or does not let us.
    """
    flow_run = current_flow_run()
    asked = replace(options, trigger=trigger_of(flow_run))
    return trail.runs.open(str(flow_run.id), flow_run.name, asked), asked


def current_flow_run() -> FlowRun:
    """Return the flow run that runs here, with the values of all its parameters."""
    context = FlowRunContext.get()
    if context is None or context.flow_run is None or context.parameters is None:
        raise LookupError("there is no current flow run")
    return context.flow_run.model_copy(update={"parameters": context.parameters})


def running_since() -> datetime:
    """Return since when the flow run that runs here is in its state, by Prefect's clock."""
    state = current_flow_run().state
    if state is None:
        raise LookupError("the current flow run has no state")
    return state.timestamp


def options_of(flow_run: FlowRun) -> RunOptions:
    """Return the options of a run; Prefect's records may lack those that are defaults."""
    asked = flow_run.parameters
    return RunOptions(
        trigger=trigger_of(flow_run),
        entities=tuple(in_sync_order(asked.get("entities", ENTITY_NAMES))),
        mode=SyncMode(asked.get("mode", SyncMode.FULL)),
        dry_run=asked.get("dry_run", False),
        skip_orphans=asked.get("skip_orphans", False),
        disable_gone=asked.get("disable_gone", False),
    )


def trigger_of(flow_run: FlowRun) -> str:
    """Return who or what asked for a run, by its parameter, else by what Prefect knows."""
    trigger: str = flow_run.parameters.get("trigger", MANUAL)
    # Not a parameter of the schedule: Prefect 3.9 forgets those when a schedule is switched on.
    return SCHEDULE if trigger == MANUAL and flow_run.auto_scheduled else trigger
