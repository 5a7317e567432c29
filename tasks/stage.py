"""A stage: plan its batches, and close it when all of them have come to their end."""

from collections.abc import Sequence
from datetime import UTC, datetime
from itertools import islice
from typing import Any

from prefect.futures import PrefectFuture

from tasks.batch_result import BatchCount
from tasks.decision import LeaveUnchanged, Reject, after_failed_batch, error_of_twin
from tasks.entities import EntityType, entity_type_named
from tasks.errors import GONE_TOO_MANY, ErrorClass, ItemError
from tasks.outcome import Outcome
from tasks.run import Run
from tasks.settings import Settings
from tasks.source.batch import Batch, GoneBatch, batch_sizes
from tasks.source.item import InvalidItem
from tasks.trail.gone import GoneItems
from tasks.trail.stages import StageTotals, Tally


class SourceMissing(RuntimeError):
    """The database has none of the source collections that a run is to read."""


def require_source(run: Run, entity_names: Sequence[str]) -> None:
    """Return if at least one source collection of these types exists.

    Raises:
        SourceMissing: none does: `MONGODB_DB` names another database.
        MongoError: MongoDB is away, or does not let us.
    """
    entity_types = [entity_type_named(name) for name in entity_names]
    if not run.source.existing(entity_types):
        collections = ", ".join(entity_type.collection for entity_type in entity_types)
        raise SourceMissing(
            f"MONGODB_DB names the database {run.settings.mongodb_database}, which has none of the "
            f"collections {collections}; nothing was sent. Check MONGODB_DB and MONGODB_URI"
        )


def plan_stage(run: Run, entity_name: str) -> list[Batch]:
    """Begin a stage: record the duplicates, cut the batches, note how many items there are.

    Raises:
        MongoError: MongoDB is away, or does not let us.
    """
    entity_type = entity_type_named(entity_name)
    hub = run.settings.hub(entity_type)
    items_in = run.trail.steps.items_in(run.id, entity_name) if run.attempt.number > 1 else 0
    run.trail.stages.begin(run.attempt, entity_name, hub, datetime.now(UTC), items_in)
    for twin in run.source.duplicates(entity_type):
        run.record(Outcome(twin, error_of_twin(twin)))
    run.trail.buffer.flush()
    batches = run.source.plan(entity_type, run.settings.concurrency, run.settings.max_task_runs)
    run.trail.stages.expect(run.attempt, entity_name, sum(batch.size for batch in batches))
    run.slots.expect(min(len(batches), run.settings.concurrency))
    return batches


def plan_gone(run: Run, entity_name: str) -> list[GoneBatch]:
    """Cut batches of what is gone from the source, once all batches of the stage have ended.

    There are none unless the run is to disable such items, and none where so many are gone at once
    that the database may be the wrong one: that is a failure.

    Raises:
        MongoError: MongoDB is away, or does not let us.
    """
    if not run.options.disable_gone or run.stop_switch.reason(entity_name) is not None:
        return []
    entity_type = entity_type_named(entity_name)
    gone = run.find_gone(entity_type)
    if gone.are_too_many:
        run.record(_too_many(entity_type, gone))
        run.trail.live.add(run.attempt, entity_name, {"total": 1})
        return []
    run.trail.live.add(run.attempt, entity_name, {"total": len(gone.natural_keys)})
    return _gone_batches(entity_name, gone.natural_keys, run.settings)


def close_stage(
    run: Run,
    entity_name: str,
    batches: Sequence[Batch | GoneBatch],
    futures: Sequence[PrefectFuture[Any]],
) -> Tally:
    """Count a stage whose batches have ended; items that an exception left open have failed.

    Raises:
        MongoError: MongoDB is away, or does not let us.
    """
    run.trail.buffer.flush()
    left_alone = StageTotals(gone=_still_gone(run, entity_name))
    for batch, future in zip(batches, futures, strict=True):
        outcome = future.result(raise_on_failure=False)
        is_broken = isinstance(outcome, BaseException)
        totals = _write_off(run, batch, outcome) if is_broken else outcome.totals
        left_alone += totals.left_alone
    return run.trail.counting.tally(run.id, entity_name, left_alone)


def _write_off(run: Run, batch: Batch | GoneBatch, cause: BaseException) -> StageTotals:
    """Record a failure for each item that an exception left without an outcome; count the rest."""
    count = BatchCount()
    conditions = run.conditions(entity_type_named(batch.entity_type))
    for page in run.lookup.pages(batch):
        for candidate in page:
            match after_failed_batch(candidate, conditions, cause):
                case Reject(found, error):
                    outcome = Outcome(found, error, known=candidate.known)
                    run.record(outcome, replaced=candidate.prior)
                case LeaveUnchanged():
                    count.add_unchanged()
    return count.result().totals


def _still_gone(run: Run, entity_name: str) -> int:
    """Count what is gone from the source and enabled in Stage 1; 0 where not all was read."""
    if run.stop_switch.reason(entity_name) is not None:
        return 0
    entity_type = entity_type_named(entity_name)
    run.forget_unwanted(entity_type)
    return run.find_gone(entity_type).count


def _gone_batches(
    entity_name: str, natural_keys: Sequence[str], settings: Settings
) -> list[GoneBatch]:
    if not natural_keys:
        return []
    cut = batch_sizes(len(natural_keys), settings.concurrency, settings.max_task_runs)
    sizes, keys = [size for size in cut if size], iter(natural_keys)
    return [
        GoneBatch(entity_name, f"gone {number} of {len(sizes)}", tuple(islice(keys, size)))
        for number, size in enumerate(sizes, 1)
    ]


def _too_many(entity_type: EntityType, gone: GoneItems) -> Outcome:
    message = (
        f"{gone.count} of the {gone.held} items that Stage 1 holds enabled are gone from "
        f"{entity_type.collection}, too many at once: none was disabled. Check that MONGODB_URI "
        "and MONGODB_DB name the right database, and disable them by hand if they do"
    )
    found = InvalidItem(entity_type, "gone from the source", None, None, message)
    return Outcome(found, ItemError(GONE_TOO_MANY, message, ErrorClass.PERMANENT))
