"""What the dashboard shows of a run beside its states: name, progress, log, summary, failures."""

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Any, Final
from uuid import UUID

from prefect import Flow, get_run_logger
from prefect.artifacts import acreate_progress_artifact, aupdate_progress_artifact
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import ArtifactCreate
from prefect.client.schemas.objects import FlowRun, State
from prefect.context import FlowRunContext

from flows.state_mirror import trigger_of
from tasks.audit import RunId
from tasks.entities import ENTITY_NAMES
from tasks.history import Counts, RunRecord, StepRecord, run_history
from tasks.settings import read_mongo_settings

FAILURES_SHOWN: Final = 100
"""How many failures a stage logs and a run tables; all of them are in `sync_steps`."""
PROGRESS_SECONDS: Final = 2.0
"""How often the progress of a stage is told."""
_TRIGGER_LENGTH: Final = 60


def name_of_run(entities: Sequence[str], trigger: str) -> str:
    """Return what a run is called, such as `all entities - schedule`."""
    what = "all entities" if len(set(entities)) == len(ENTITY_NAMES) else ", ".join(entities)
    return f"{what} - {trigger[:_TRIGGER_LENGTH]}"


def name_of_current_run() -> str:
    """Name of the `admin-sync` flow run that is about to begin."""
    context = FlowRunContext.get()
    if context is None or context.flow_run is None or context.parameters is None:
        raise LookupError("there is no current flow run to name")
    return name_of_run(context.parameters["entities"], trigger_of(context.flow_run))


@asynccontextmanager
async def progress_shown(run_id: RunId, entity_type: str) -> AsyncIterator[None]:
    """Keep a progress artifact of the run up to date while its stage runs in the block.

    A Prefect API that doesn't take it stops nothing.
    """
    stage_ended = asyncio.Event()
    showing = asyncio.create_task(_show_progress(run_id, entity_type, stage_ended))
    try:
        yield
    finally:
        stage_ended.set()
        (outcome,) = await asyncio.gather(showing, return_exceptions=True)
        if isinstance(outcome, Exception):
            get_run_logger().warning(
                "The progress of %s is not shown: %s", entity_type, type(outcome).__name__
            )


async def _show_progress(run_id: RunId, entity_type: str, stage_ended: asyncio.Event) -> None:
    artifact_id: UUID | None = None
    is_ended = False
    while not is_ended:
        # Not at once: on SQLite, a first artifact beside the stage's first requests collides
        # with them, and costs the stage two seconds.
        is_ended = await _is_set_within(PROGRESS_SECONDS, stage_ended)
        done, total = await asyncio.to_thread(_progress, run_id, entity_type)
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


def _progress(run_id: RunId, entity_type: str) -> tuple[int, int]:
    history = run_history(read_mongo_settings())
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


def log_stage(run_id: RunId, entity_type: str, state: State[Any]) -> None:
    """Log one line for a stage that has ended, and one for each of its first failures."""
    logger = get_run_logger()
    logger.info("%s: %s", entity_type, state.message)
    failures = run_history(read_mongo_settings()).failures(run_id, FAILURES_SHOWN + 1, entity_type)
    for step in failures[:FAILURES_SHOWN]:
        logger.error("%s %s: %s", entity_type, step.key, _why(step))
    if len(failures) > FAILURES_SHOWN:
        logger.error("%s: more failures are in sync_steps", entity_type)


def publish_results(flow: Flow[..., Any], flow_run: FlowRun, state: State[Any]) -> None:
    """State hook: leave a summary, and a table of the failures, with a run that has ended."""
    history = run_history(read_mongo_settings())
    run = history.run_of(str(flow_run.id))
    if run is None:
        return
    _publish(
        flow_run,
        key="summary",
        description=f"{run.status}: {run.message or ''} (run_id {run.id})",
        rows=list(_summary_rows(run)),
    )
    failures = history.failures(RunId(run.id), FAILURES_SHOWN)
    if failures:
        _publish(
            flow_run,
            key="failures",
            description=f"Failed items: {len(failures)} of {run.totals.failed} are shown",
            rows=[_failure_row(step) for step in failures],
        )


def _publish(
    flow_run: FlowRun, *, key: str, description: str, rows: Sequence[dict[str, Any]]
) -> None:
    table = ArtifactCreate(
        type="table",
        key=key,
        description=description,
        data=json.dumps(rows),
        flow_run_id=flow_run.id,
    )
    with get_client(sync_client=True) as client:
        client.create_artifact(table)


def _summary_rows(run: RunRecord) -> Iterator[dict[str, Any]]:
    for stage in run.stages:
        yield _summary_row(stage.entity_type, stage.status, stage, stage.seconds)
    yield _summary_row("all", run.status, run.totals, run.seconds)


def _summary_row(name: str, status: str, counts: Counts, seconds: float | None) -> dict[str, Any]:
    return {
        "stage": name,
        "status": status,
        "total": counts.total,
        "success": counts.success,
        "failed": counts.failed,
        "skipped": counts.skipped,
        "seconds": None if seconds is None else round(seconds, 1),
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
