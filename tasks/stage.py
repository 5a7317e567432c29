"""A stage: plan its batches, and close it when all of them have come to their end."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from prefect.futures import PrefectFuture

from tasks.decision import DUPLICATE, LeaveUnchanged, Reject, after_failed_batch
from tasks.entities import entity_type_named
from tasks.run import Run
from tasks.source.batch import Batch
from tasks.trail.stages import StageTotals, Tally
from tasks.upsert import BatchCount


def plan_stage(run: Run, entity_name: str) -> list[Batch]:
    """Begin a stage: record the duplicates, cut the batches, note how many items there are.

    Raises:
        MongoError: MongoDB is away, or does not let us.
    """
    entity_type = entity_type_named(entity_name)
    run.trail.stages.begin(run.id, entity_name, datetime.now(UTC))
    for item in run.source.duplicates(entity_type):
        run.record(item, DUPLICATE)
    run.trail.buffer.flush()
    batches = run.source.plan(entity_type, run.settings.concurrency, run.settings.max_task_runs)
    run.trail.stages.expect(run.id, entity_name, sum(batch.size for batch in batches))
    run.slots.expect(min(len(batches), run.settings.concurrency))
    return batches


def close_stage(
    run: Run, entity_name: str, batches: Sequence[Batch], futures: Sequence[PrefectFuture[Any]]
) -> Tally:
    """Count a stage whose batches have ended; items that an exception left open have failed.

    Raises:
        MongoError: MongoDB is away, or does not let us.
    """
    run.trail.buffer.flush()
    left_alone = StageTotals()
    for batch, future in zip(batches, futures, strict=True):
        outcome = future.result(raise_on_failure=False)
        is_broken = isinstance(outcome, BaseException)
        totals = _write_off(run, batch, outcome) if is_broken else outcome.totals
        left_alone += totals.left_alone
    return run.trail.counting.tally(run.id, entity_name, left_alone)


def _write_off(run: Run, batch: Batch, cause: BaseException) -> StageTotals:
    """Record a failure for each item that an exception left without an outcome; count the rest."""
    count = BatchCount()
    for found, prior in run.items(batch):
        match after_failed_batch(found, prior, cause):
            case Reject(item, error):
                run.record(item, error)
            case LeaveUnchanged():
                count.add_unchanged()
    return count.result().totals
