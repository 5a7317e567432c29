"""Runs a sync in this process, shows it while it runs, and tells what came of it."""

import asyncio
import sys
from typing import Any, Final, cast

import httpx
from prefect import Flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun, State
from prefect.flow_engine import run_flow_async
from prefect.utilities.urls import url_for
from pymongo.errors import PyMongoError
from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)
from rich.table import Table

from flows.admin_sync import admin_sync
from tasks.audit import AuditTrail, RunStatus, audit_trail
from tasks.entities import ENTITY_NAMES
from tasks.mongo import Document, MongoUnavailable
from tasks.settings import SettingsError, read_settings

_REFRESH_SECONDS: Final = 0.5
_FAILURES_SHOWN: Final = 20
_COUNTS: Final = ("total", "success", "failed", "skipped")
_STYLE_BY_STATUS: Final = {"success": "green", "partial": "yellow", "pending": "dim"}

_console: Final = Console()


def main() -> int:
    """Sync everything; 0 when every item is in, 1 when one is not, 2 when no run could be made."""
    try:
        audit = audit_trail(read_settings())
        audit.prepare()
    except (SettingsError, MongoUnavailable) as error:
        print(error, file=sys.stderr)
        return 2
    return asyncio.run(_sync(audit))


async def _sync(audit: AuditTrail) -> int:
    parameters = {"entities": ENTITY_NAMES, "trigger": "scripts/run"}
    try:
        async with get_client() as prefect:
            flow_run = await prefect.create_flow_run(admin_sync, parameters=parameters)
    except (httpx.HTTPError, RuntimeError) as error:
        print(f"Prefect does not answer at PREFECT_API_URL: {error}", file=sys.stderr)
        return 2
    sync = asyncio.ensure_future(
        run_flow_async(
            cast(Flow[..., Any], admin_sync),
            flow_run=flow_run,
            parameters=parameters,
            return_type="state",
        )
    )
    await _show_while_running(sync, audit, str(flow_run.id))
    run = await asyncio.to_thread(_run_with_progress, audit, str(flow_run.id))
    return _tell(cast(State[Any], await sync), run, flow_run)


async def _show_while_running(
    sync: "asyncio.Future[Any]", audit: AuditTrail, flow_run_id: str
) -> None:
    columns = (
        TextColumn("{task.description:10}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=_console) as progress:
        bars = {name: progress.add_task(name, total=None, start=False) for name in ENTITY_NAMES}
        while True:
            finished = sync.done()
            run = await asyncio.to_thread(_run_with_progress, audit, flow_run_id)
            for stage in run["stages"] if run else []:
                _advance(progress, bars[stage["entity_type"]], stage)
            if finished:
                return
            await asyncio.wait({sync}, timeout=_REFRESH_SECONDS)


def _run_with_progress(audit: AuditTrail, flow_run_id: str) -> Document | None:
    """Return the run's document, a running stage with the steps it has by now as `done`."""
    try:
        run = audit.run_of(flow_run_id)
        for stage in run["stages"] if run else []:
            if run and stage["status"] == RunStatus.RUNNING:
                totals, _ = audit.tally(run["_id"], stage["entity_type"])
                stage["done"] = totals.total
    except PyMongoError:
        return None
    return run


def _advance(progress: Progress, bar: TaskID, stage: Document) -> None:
    if not stage["started_at"]:
        return
    progress.start_task(bar)
    progress.update(bar, total=stage["total"], completed=stage.get("done", stage["total"]))
    if stage["finished_at"]:
        progress.stop_task(bar)


def _tell(state: State[Any], run: Document | None, flow_run: FlowRun) -> int:
    if run is not None:
        _console.print(_stage_table(run))
        if run["errors"]:
            _console.print(_failure_table(run["errors"]))
    status = run["status"] if run else "failed"
    _console.print(f"[{_style(status)}]{status}[/]: {escape(state.message or '')}", highlight=False)
    _console.print(f"run_id    {run['_id'] if run else 'none: the run is not in the audit trail'}")
    _console.print(f"dashboard {url_for(flow_run)}", soft_wrap=True)
    return 0 if state.is_completed() else 1


def _stage_table(run: Document) -> Table:
    table = Table("stage", "status", title="Totals")
    for heading in ("total", "success", "failed", "skipped", "seconds"):
        table.add_column(heading, justify="right")
    for stage in run["stages"]:
        table.add_row(
            stage["entity_type"],
            f"[{_style(stage['status'])}]{stage['status']}[/]",
            *(str(stage[count]) for count in _COUNTS),
            _seconds(stage),
        )
    table.add_section()
    table.add_row("all", "", *(str(run["totals"][count]) for count in _COUNTS), _seconds(run))
    return table


def _failure_table(errors: list[Document]) -> Table:
    shown = errors[:_FAILURES_SHOWN]
    caption = f"{len(errors) - len(shown)} more in sync_steps" if len(errors) > len(shown) else None
    table = Table("entity", "natural key", "code", "message", title="Not in", caption=caption)
    for error in shown:
        table.add_row(
            error["entity_type"],
            escape(error["natural_key"] or "-"),
            error["code"],
            escape(error["message"]),
        )
    return table


def _seconds(document: Document) -> str:
    started, finished = document["started_at"], document["finished_at"]
    return f"{(finished - started).total_seconds():.1f}" if started and finished else "-"


def _style(status: str) -> str:
    return _STYLE_BY_STATUS.get(status, "red")


if __name__ == "__main__":
    sys.exit(main())
