"""Runs a sync in this process, shows it while it runs, and tells what came of it."""

import argparse
import asyncio
import sys
from dataclasses import dataclass
from json import JSONDecodeError
from typing import Any, Final, cast

import httpx
from prefect import Flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun, State
from prefect.exceptions import Abort
from prefect.flow_engine import run_flow_async
from prefect.utilities.urls import url_for
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)
from rich.text import Text

from deployments.loopback import exempt_loopback_from_proxies
from flows.admin_sync import admin_sync
from scripts.run_tables import (
    failure_table,
    literal,
    literal_console,
    print_table,
    stage_table,
    status_text,
)
from tasks.entities import ENTITY_NAMES
from tasks.mongo_errors import MongoError
from tasks.prefect_api import fault_in_words, require_prefect_api
from tasks.settings import SettingsError, read_settings
from tasks.trail.audit_trail import audit_trail
from tasks.trail.history import RunHistory, StepPage, run_history
from tasks.trail.runs import RunRecord
from tasks.trail.stages import RunStatus, StageRecord
from tasks.trail.steps import StepRecord

_REFRESH_SECONDS: Final = 0.5
_FAILURES_SHOWN: Final = 20

_console: Final = literal_console()


@dataclass(frozen=True)
class _Outcome:
    """A run that has ended, and its items that are not in, as the audit trail has them."""

    run: RunRecord
    not_in: StepPage


def main() -> int:
    """Sync everything; 0 when every item is in, 1 when one is not, 2 when no run could be made."""
    argparse.ArgumentParser(prog="python -m scripts.sync_now", description=__doc__).parse_args()
    exempt_loopback_from_proxies()
    try:
        settings = read_settings()
        require_prefect_api()
        audit_trail(settings)
        history = run_history(settings)
    except (SettingsError, MongoError) as error:
        print(error, file=sys.stderr)
        return 2
    return asyncio.run(_sync(history))


async def _sync(history: RunHistory) -> int:
    parameters = {"entities": ENTITY_NAMES, "trigger": "scripts/run"}
    try:
        async with get_client() as prefect:
            flow_run = await prefect.create_flow_run(admin_sync, parameters=parameters)
    except (httpx.HTTPError, JSONDecodeError) as error:
        print(f"{fault_in_words(error)}.", file=sys.stderr)
        return 2
    sync = asyncio.ensure_future(
        run_flow_async(
            cast(Flow[..., Any], admin_sync),
            flow_run=flow_run,
            parameters=parameters,
            return_type="state",
        )
    )
    await _show_while_running(sync, history, str(flow_run.id))
    outcome = await asyncio.to_thread(_outcome_of, history, str(flow_run.id))
    try:
        return _tell(cast(State[Any], await sync), outcome, flow_run)
    except (Abort, httpx.HTTPError, RuntimeError) as left:
        print(f"The sync did not come to its end here: {_in_words(left)}", file=sys.stderr)
        return 1


def _in_words(error: BaseException) -> str:
    """Return why Prefect left a run; it wraps what its client met when it first asks the server."""
    met = error.__cause__ or error
    return f"{fault_in_words(met)}." if isinstance(met, httpx.HTTPError) else str(error)


async def _show_while_running(
    sync: "asyncio.Future[Any]", history: RunHistory, flow_run_id: str
) -> None:
    columns = (
        TextColumn("{task.description:10}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=_console) as progress:
        bars = {
            str(name): progress.add_task(name, total=None, start=False) for name in ENTITY_NAMES
        }
        told: str | None = None
        while True:
            finished = sync.done()
            run = await asyncio.to_thread(_run_of, history, flow_run_id)
            if run is not None and run.status is RunStatus.PENDING and run.message != told:
                told = run.message
                progress.console.print(told)
            for stage, done in await asyncio.to_thread(_stages_begun, history, run):
                _advance(progress, bars[stage.entity_type], stage, done)
            if finished:
                return
            await asyncio.wait({sync}, timeout=_REFRESH_SECONDS)


def _run_of(history: RunHistory, flow_run_id: str) -> RunRecord | None:
    try:
        return history.run_of(flow_run_id)
    except MongoError:
        return None


def _stages_begun(history: RunHistory, run: RunRecord | None) -> list[tuple[StageRecord, int]]:
    """Return the stages that have begun, each with how many of its items are done by now."""
    begun = (stage for stage in (run.stages if run else ()) if stage.started_at)
    try:
        return [(stage, _done(history, run, stage)) for stage in begun if run]
    except MongoError:
        return []


def _done(history: RunHistory, run: RunRecord, stage: StageRecord) -> int:
    if stage.status is RunStatus.RUNNING:
        return history.steps_done(run.id, stage.entity_type)
    return stage.total


def _advance(progress: Progress, bar: TaskID, stage: StageRecord, done: int) -> None:
    progress.start_task(bar)
    progress.update(bar, total=stage.total, completed=done)
    if stage.finished_at:
        progress.stop_task(bar)


def _outcome_of(history: RunHistory, flow_run_id: str) -> _Outcome | None:
    try:
        run = history.run_of(flow_run_id)
        if run is None:
            return None
        return _Outcome(run, history.steps(run.id, 1, _FAILURES_SHOWN, ok=False))
    except MongoError:
        return None


def _tell(state: State[Any], outcome: _Outcome | None, flow_run: FlowRun) -> int:
    if outcome is not None:
        _tell_outcome(outcome)
    status = outcome.run.status if outcome else RunStatus.FAILED
    run_id = outcome.run.id if outcome else "none: the run is not in the audit trail"
    _console.print(Text.assemble(status_text(status), ": ", literal(state.message or "")))
    _console.print(f"run_id    {run_id}")
    _console.print(f"dashboard {url_for(flow_run)}", soft_wrap=True)
    return 0 if state.is_completed() else 1


def _tell_outcome(outcome: _Outcome) -> None:
    print_table(stage_table(outcome.run))
    steps = [step for step in outcome.not_in.items if isinstance(step, StepRecord)]
    if steps:
        left_out = outcome.not_in.total - len(steps)
        caption = f"{left_out} more in sync_steps" if left_out else None
        print_table(failure_table(steps, title="Not in", caption=caption, with_requests=False))


if __name__ == "__main__":
    sys.exit(main())
