"""AuditTrail: the collections `sync_runs`, `sync_steps` and `sync_items`, as a run uses them."""

import logging
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from pymongo.collection import Collection
from pymongo.write_concern import WriteConcern

from tasks.mongo import Document, MongoRetry, mongo_retry, trail_database
from tasks.settings import MongoSettings
from tasks.trail.counting import Counting
from tasks.trail.gone import Gone
from tasks.trail.indexes import make_indexes
from tasks.trail.items import ITEM_INDEXES, Items
from tasks.trail.live_counts import LiveCounts
from tasks.trail.ownership import TURN_INDEX, Ownership
from tasks.trail.runs import RUN_INDEXES, Runs
from tasks.trail.stages import Stages
from tasks.trail.step_buffer import StepBuffer
from tasks.trail.steps import STEP_EXPIRY, STEP_INDEXES, Steps
from tasks.trail.stops import Stops

_logger: Final = logging.getLogger(__name__)

_DURABLE: Final = WriteConcern(w="majority", j=True)
"""Lets a record outlive a MongoDB that is killed, and a primary that is lost."""
_MAJORITY: Final = WriteConcern(w="majority")
"""Does not wait for the journal: an outcome that is lost leaves its item in doubt, as announced."""
_RUN_INDEXES_USED_NO_MORE: Final = ("active_1",)
_STEP_INDEXES_USED_NO_MORE: Final = (
    "request_id_1_ok_1",
    "run_id_1_ok_1_created_at_1__id_1",
)


@dataclass(frozen=True)
class AuditTrail:
    """The parts of an audit trail, one a job.

    Their methods wait for a MongoDB that is away, and raise `MongoError`.
    """

    runs: Runs
    stages: Stages
    stops: Stops
    ownership: Ownership
    steps: Steps
    items: Items
    gone: Gone
    live: LiveCounts
    buffer: StepBuffer
    counting: Counting


@lru_cache(maxsize=8)
def audit_trail(settings: MongoSettings) -> AuditTrail:
    """Return this process's audit trail of the database that the settings name.

    At its first call it makes the indexes.

    Raises:
        MongoError: MongoDB is away, or does not let us.
    """
    retry, backoffice = mongo_retry(settings), trail_database(settings)
    sync_runs = backoffice.get_collection("sync_runs", write_concern=_DURABLE)
    sync_steps = backoffice.get_collection("sync_steps", write_concern=_DURABLE)
    sync_items = backoffice.get_collection("sync_items", write_concern=_DURABLE)
    retry.call(lambda: sync_runs.create_indexes([TURN_INDEX]))
    for hindrance in retry.call(lambda: _make_indexes(sync_runs, sync_steps, sync_items)):
        _logger.warning(hindrance)
    if (days := settings.steps_retention_days) is not None:
        retry.call(lambda: _expire(sync_steps, days))
    lost_in_a_crash = sync_items.with_options(write_concern=_MAJORITY)
    live = LiveCounts(Stages(sync_runs, retry))
    buffer = StepBuffer(sync_steps, lost_in_a_crash, live, retry)
    return trail_of(sync_runs, sync_steps, sync_items, buffer, retry)


def trail_of(
    sync_runs: Collection[Document],
    sync_steps: Collection[Document],
    sync_items: Collection[Document],
    buffer: StepBuffer,
    retry: MongoRetry,
) -> AuditTrail:
    """Return the audit trail on these collections, with their indexes or without."""
    runs, steps = Runs(sync_runs, retry), Steps(sync_steps, retry)
    return AuditTrail(
        runs,
        Stages(sync_runs, retry),
        Stops(sync_runs, retry),
        Ownership(sync_runs, retry),
        steps,
        Items(sync_items, retry),
        Gone(sync_items, retry),
        buffer.live,
        buffer,
        Counting(runs, steps, buffer),
    )


def _make_indexes(
    runs: Collection[Document], steps: Collection[Document], items: Collection[Document]
) -> list[str]:
    """Make the indexes that a run can do without; return why one could not be made."""
    return [
        *make_indexes(runs, RUN_INDEXES, _RUN_INDEXES_USED_NO_MORE),
        *make_indexes(steps, STEP_INDEXES, _STEP_INDEXES_USED_NO_MORE),
        *make_indexes(items, ITEM_INDEXES),
    ]


def _expire(steps: Collection[Document], days: int) -> None:
    """Let MongoDB delete steps that many days after their last change; 0: never."""
    present = steps.index_information().get(STEP_EXPIRY)
    wanted = days * 86_400
    if present and present["expireAfterSeconds"] != wanted:
        steps.drop_index(STEP_EXPIRY)
    if wanted:
        steps.create_index("updated_at", name=STEP_EXPIRY, expireAfterSeconds=wanted)
