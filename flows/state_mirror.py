"""Carries Prefect's states of `admin-sync` flow runs into `sync_runs`."""

from dataclasses import replace
from typing import Any, Final

from prefect import Flow
from prefect.client.schemas.objects import FlowRun, State
from prefect.context import FlowRunContext

from flows.conclusion import status_of
from tasks.entities import ENTITY_NAMES, in_sync_order
from tasks.settings import MongoSettings, read_mongo_settings
from tasks.trail.audit_trail import AuditTrail, audit_trail
from tasks.trail.fields import RunId
from tasks.trail.runs import RunAttempt, RunOptions, SyncMode

FLOW_NAME: Final = "admin-sync"
"""Name of the flow whose runs are mirrored."""
MANUAL: Final = "manual"
"""Trigger of a run that names none."""
SCHEDULE: Final = "schedule"
"""Trigger of a run that a Prefect schedule made."""


def mirror_run(flow: Flow[..., Any], flow_run: FlowRun, state: State[Any]) -> None:
    """State hook: carry the state of an `admin-sync` flow run into its `sync_runs` document."""
    mirror_state(audit_trail(read_mongo_settings()), flow_run, state)


def mirror_state(trail: AuditTrail, flow_run: FlowRun, state: State[Any]) -> None:
    """Carry a state of an `admin-sync` flow run into its `sync_runs` document.

    Raises:
        MongoError: MongoDB is away, or does not let us.
    """
    run_id = open_run_of(trail, flow_run)
    status, message, at = status_of(state), state.message or "", state.timestamp
    if status.is_terminal:
        trail.counting.end_run(run_id, status, message, at)
    else:
        trail.runs.mirror(run_id, status, message, at)


def open_run_of(trail: AuditTrail, flow_run: FlowRun) -> RunId:
    """Find or create the `sync_runs` document of an `admin-sync` flow run; returns its key.

    Raises:
        MongoError: MongoDB is away, or does not let us.
    """
    return trail.runs.open(str(flow_run.id), flow_run.name, options_of(flow_run))


def begin_current_run(settings: MongoSettings, options: RunOptions) -> RunAttempt:
    """Begin the next attempt of the flow run that runs here, in its own `sync_runs` document.

    Raises:
        MongoError: MongoDB is away, or does not let us.
    """
    runs, flow_run = audit_trail(settings).runs, current_flow_run()
    asked = replace(options, trigger=trigger_of(flow_run))
    return runs.begin_attempt(runs.open(str(flow_run.id), flow_run.name, asked))


def current_flow_run() -> FlowRun:
    """Return the flow run that runs here, with the values of all its parameters."""
    context = FlowRunContext.get()
    if context is None or context.flow_run is None or context.parameters is None:
        raise LookupError("there is no current flow run")
    return context.flow_run.model_copy(update={"parameters": context.parameters})


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
