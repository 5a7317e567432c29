"""The dashboard's view of a run beside its states: name, progress, log, summary, failures."""

import asyncio
import json
import logging
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final
from uuid import UUID

from prefect import Flow, get_run_logger
from prefect.artifacts import acreate_progress_artifact, aupdate_progress_artifact
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import ArtifactCreate
from prefect.client.schemas.objects import FlowRun, State

from flows.state_mirror import current_flow_run, options_of
from tasks.entities import ENTITY_NAMES
from tasks.run import Run
from tasks.settings import MongoSettings, read_mongo_settings
from tasks.trail.fields import RunId
from tasks.trail.history import RunHistory, run_history
from tasks.trail.runs import RunOptions, RunRecord, SyncMode
from tasks.trail.stages import StageRecord, Totals
from tasks.trail.steps import StepRecord

FAILURES_SHOWN: Final = 100
"""How many failures a stage logs and a run tables; all of them are in `sync_steps`."""
FAULTS_SHOWN: Final = 10_000
"""How many of the items that would fail a dry run tables; all of them are in `sync_steps`."""
PROGRESS_SECONDS: Final = 2.0
"""How often the progress of a stage is told."""
_TRIGGER_LENGTH: Final = 60
_MARKUP: Final = re.compile(
    r"[\\`*\[\]<&~@] | (?<!\w)_ | _(?!\w) | :(?=//) | (?<=www)\.", re.IGNORECASE | re.VERBOSE
)
"""Marks of emphasis, links, images and HTML in a text that is taken for Markdown."""


def name_of_run(options: RunOptions) -> str:
    """Return the name of a run, such as `all entities - schedule`."""
    is_all = len(options.entities) == len(ENTITY_NAMES)
    what = "all entities" if is_all else ", ".join(options.entities)
    if options.mode is SyncMode.CHANGED:
        what = f"changed: {what}"
    if options.dry_run:
        what = f"dry run: {what}"
    return f"{what} - {options.trigger[:_TRIGGER_LENGTH]}"


def name_of_current_run() -> str:
    """Name of the `admin-sync` flow run that is about to begin."""
    return name_of_run(options_of(current_flow_run()))


class ProgressBoard:
    """The progress artifacts of a run, one a stage, kept up to date while it runs.

    A Prefect API that doesn't take one stops nothing.
    """

    def __init__(self, run: Run) -> None:
        self._run_id = run.id
        self._history = run_history(run.settings)
        self._showing: dict[str, asyncio.Task[None]] = {}

    @contextmanager
    def showing(self, entity_type: str) -> Iterator[None]:
        """Show the progress of a stage while it runs in the block; the last word comes later."""
        stage_ended = asyncio.Event()
        show = _show_progress(self._history, self._run_id, entity_type, stage_ended)
        self._showing[entity_type] = asyncio.create_task(show)
        try:
            yield
        finally:
            stage_ended.set()

    async def finish(self) -> None:
        """Wait for the last word on each stage."""
        outcomes = await asyncio.gather(*self._showing.values(), return_exceptions=True)
        for entity_type, outcome in zip(self._showing, outcomes, strict=True):
            if isinstance(outcome, Exception):
                get_run_logger().warning(
                    "The progress of %s is not shown: %s", entity_type, type(outcome).__name__
                )


async def _show_progress(
    history: RunHistory, run_id: RunId, entity_type: str, stage_ended: asyncio.Event
) -> None:
    artifact_id: UUID | None = None
    is_ended = False
    while not is_ended:
        is_ended = await _is_set_within(PROGRESS_SECONDS, stage_ended)
        done, total = await asyncio.to_thread(_progress, history, run_id, entity_type)
        percentage = 100.0 if is_ended else min(99.0, 100 * done / max(total, 1))
        description = f"{entity_type}: {done} of {total} items"
        if artifact_id is None:
            artifact_id = await acreate_progress_artifact(
                percentage, key=f"progress-{entity_type}", description=description
            )
        else:
            await aupdate_progress_artifact(artifact_id, percentage, description)


async def _is_set_within(seconds: float, event: asyncio.Event) -> bool:
    try:
        await asyncio.wait_for(event.wait(), seconds)
    except TimeoutError:
        return False
    return True


def _progress(history: RunHistory, run_id: RunId, entity_type: str) -> tuple[int, int]:
    run = history.run(run_id)
    stages = run.stages if run else []
    total = sum(stage.total for stage in stages if stage.entity_type == entity_type)
    return history.steps_done(run_id, entity_type), total


@contextmanager
def task_runs_unlogged() -> Iterator[None]:
    """Keep what Prefect logs of each task run out of the log; exceptions still get in."""
    logger = logging.getLogger("prefect.task_runs")
    logger.addFilter(_tells_of_an_exception)
    try:
        yield
    finally:
        logger.removeFilter(_tells_of_an_exception)


def _tells_of_an_exception(record: logging.LogRecord) -> bool:
    return record.exc_info is not None and record.exc_info[0] is not None


def log_stage(run: Run, entity_type: str, state: State[Any]) -> None:
    """Log one line for a stage that has ended, and one for each of its first failures."""
    logger = get_run_logger()
    logger.info("%s: %s", entity_type, state.message)
    failures = run_history(run.settings).failures(run.id, FAILURES_SHOWN + 1, entity_type)
    for step in failures[:FAILURES_SHOWN]:
        logger.error("%s %s: %s", entity_type, step.key, _why(step))
    if len(failures) > FAILURES_SHOWN:
        logger.error("%s: more failures are in sync_steps", entity_type)


def publish_results(flow: Flow[..., Any], flow_run: FlowRun, state: State[Any]) -> None:
    """State hook: leave a summary, and a table of the failures, with a run that has ended."""
    publish_results_of(flow_run, read_mongo_settings())


def publish_results_of(flow_run: FlowRun, settings: MongoSettings) -> None:
    """Leave a summary, and a table of the failures, with a run that has ended."""
    history = run_history(settings)
    run = history.run_of(str(flow_run.id))
    if run is None:
        return
    if run.dry_run:
        _publish_dry_run(flow_run, run)
        _publish_failures(flow_run, run, "Items that would fail", history, FAULTS_SHOWN)
    else:
        _publish_run(flow_run, run)
        _publish_failures(flow_run, run, "Failed items", history, FAILURES_SHOWN)


def _publish_run(flow_run: FlowRun, run: RunRecord) -> None:
    _publish(
        flow_run,
        key="summary",
        description=f"{run.status}: {run.message or ''} (run_id {run.id})",
        rows=list(_summary_rows(run)),
    )


def _publish_dry_run(flow_run: FlowRun, run: RunRecord) -> None:
    _publish(
        flow_run,
        key="dry-run",
        description=f"{run.message or ''} (run_id {run.id})",
        rows=[_dry_run_row(stage) for stage in run.stages],
    )


def _publish_failures(
    flow_run: FlowRun, run: RunRecord, what: str, history: RunHistory, limit: int
) -> None:
    failures = history.failures(run.id, limit)
    if failures:
        _publish(
            flow_run,
            key="failures",
            description=f"{what}: {len(failures)} of {run.totals.failed} are shown",
            rows=[_failure_row(step) for step in failures],
        )


def _publish(
    flow_run: FlowRun, *, key: str, description: str, rows: Sequence[dict[str, Any]]
) -> None:
    table = ArtifactCreate(
        type="table",
        key=key,
        description=_literal(description),
        data=json.dumps([{name: _literal(cell) for name, cell in row.items()} for row in rows]),
        flow_run_id=flow_run.id,
    )
    with get_client(sync_client=True) as client:
        client.create_artifact(table)


def _literal(cell: Any) -> Any:
    """Let the dashboard, which takes texts of an artifact for Markdown, show them as they are."""
    return _MARKUP.sub(r"\\\g<0>", cell) if isinstance(cell, str) else cell


def _summary_rows(run: RunRecord) -> Iterator[dict[str, Any]]:
    for stage in run.stages:
        yield _summary_row(stage.entity_type, stage.status, stage, stage.seconds)
    yield _summary_row("all", run.status, run.totals, run.seconds)


def _summary_row(name: str, status: str, counts: Totals, seconds: float | None) -> dict[str, Any]:
    return {
        "stage": name,
        "status": status,
        "total": counts.total,
        "success": counts.success,
        "failed": counts.failed,
        "skipped": counts.skipped,
        "seconds": None if seconds is None else round(seconds, 1),
    }


def _dry_run_row(stage: StageRecord) -> dict[str, Any]:
    return {
        "stage": stage.entity_type,
        "items": stage.total,
        "would be sent": stage.would_send,
        "first": stage.first,
        "unchanged": stage.unchanged,
        "would fail": stage.failed,
    }


def _failure_row(step: StepRecord) -> dict[str, Any]:
    return {
        "entity type": step.entity_type,
        "natural key": step.key,
        "code": step.error.code if step.error else None,
        "message": step.error.message if step.error else None,
        "attempts": step.attempts,
        "request_id": step.request_id,
    }


def _why(step: StepRecord) -> str:
    return f"{step.error.code}: {step.error.message}" if step.error else step.state
