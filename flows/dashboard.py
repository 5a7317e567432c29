"""The dashboard's view of a run beside its name, states and results: progress and log."""

import asyncio
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final
from uuid import UUID

from prefect import get_run_logger
from prefect.artifacts import acreate_progress_artifact, aupdate_progress_artifact
from prefect.client.schemas.objects import State

from tasks.run import Run
from tasks.trail.fields import RunId
from tasks.trail.history import RunHistory, run_history
from tasks.trail.stages import StageRecord, pace_in_words
from tasks.trail.steps import StepRecord

_FAILURES_SHOWN: Final = 100
"""How many failures a stage logs; all of them are in `sync_steps`."""
PROGRESS_SECONDS: Final = 1.0
"""How often the progress of a stage is told."""


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
        stage = await asyncio.to_thread(_stage_of, history, run_id, entity_type)
        share = round(100 * stage.done / max(stage.total, 1), 1)
        percentage = 100.0 if is_ended else min(99.0, share)
        description = progress_in_words(stage)
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


def _stage_of(history: RunHistory, run_id: RunId, entity_type: str) -> StageRecord:
    run = history.run(run_id)
    stages = (stage for stage in (run.stages if run else ()) if stage.entity_type == entity_type)
    return next(stages, StageRecord(entity_type=entity_type))


def progress_in_words(stage: StageRecord) -> str:
    """Return how far a stage has come, such as `domain: 3 of 9 items: 2 ok, 1 failed`."""
    counts = {
        "ok": stage.success,
        "unchanged": stage.unchanged,
        "failed": stage.failed,
        "skipped": stage.skipped - stage.unchanged,
        "retrying": stage.retrying,
    }
    told = ", ".join(f"{count} {name}" for name, count in counts.items() if count)
    progress = f"{stage.entity_type}: {stage.done} of {stage.total} items"
    pace = None if stage.pace is None else pace_in_words(stage.pace)
    return ", ".join(filter(None, (f"{progress}: {told}" if told else progress, pace)))


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
    if state.is_completed():
        return
    history = run_history(run.settings)
    failures = list(history.failures(run.id, _FAILURES_SHOWN + 1, entity_type))
    for step in failures[:_FAILURES_SHOWN]:
        logger.error("%s %s: %s", entity_type, step.key, _why(step))
    if len(failures) > _FAILURES_SHOWN:
        logger.error("%s: more failures are in sync_steps", entity_type)


def _why(step: StepRecord) -> str:
    return f"{step.error.code}: {step.error.message}" if step.error else step.state
