"""StepBuffer: collects what came of items, of all threads of a process, and writes it in bulk."""

import logging
import threading
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from pymongo import InsertOne
from pymongo.collection import Collection
from pymongo.errors import PyMongoError

from tasks.mongo import Document, MongoRetry, mongo_operation
from tasks.mongo_errors import MongoError
from tasks.trail.bulk import is_inserted_as_it_is, write_all
from tasks.trail.fields import RunAttempt, RunId
from tasks.trail.items import ItemWrite
from tasks.trail.live_counts import LiveCounts, changes_by
from tasks.trail.steps import PriorStep, Step, insert_of, upsert_of

_logger = logging.getLogger(__name__)

STEPS_BEHIND: Final = 50
"""At most this many steps of the process wait to be written, beside those being written."""
SECONDS_BEHIND: Final = 1.0
"""At most this long does a step wait to be written."""


class StepBuffer:
    """Holds steps that are not written yet: `STEPS_BEHIND` or `SECONDS_BEHIND` at most.

    A step is written first, then its item: so what is lost in between is sent again. While they
    can't be written, a thread that records one waits: beside those being written, each thread adds
    one at most.
    """

    def __init__(
        self,
        steps: Collection[Document],
        items: Collection[Document],
        live: LiveCounts,
        retry: MongoRetry,
    ) -> None:
        self._steps = steps
        self._items = items
        self.live: Final = live
        self._retry = retry
        self._waiting: list[_Entry] = []
        self._waiting_lock = threading.Lock()
        self._steps_lock = threading.Lock()
        self._items_lock = threading.Lock()
        self._timer: threading.Timer | None = None

    def record(
        self,
        step: Step,
        item: ItemWrite | None = None,
        *,
        replaced: PriorStep | None = None,
        is_new: bool = False,
    ) -> None:
        """Take a step in, and what it changes of its item; they are written soon.

        Args:
            step: the step.
            item: what it changes of its item; None for nothing.
            replaced: the step of the document that is on record; None for none.
            is_new: whether the run has no step of the document yet, as far as is known.

        Raises:
            MongoError: MongoDB stayed away, or refuses; the steps still wait.
        """
        with self._waiting_lock:
            can_insert = is_new and is_inserted_as_it_is(step.source_id)
            insert = insert_of(step) if can_insert else None
            self._waiting.append(_Entry(step, insert, item, changes_by(step, replaced)))
            is_full = len(self._waiting) >= STEPS_BEHIND
            if self._timer is None:
                self._timer = threading.Timer(SECONDS_BEHIND, self._flush_by_timer)
                self._timer.daemon = True
                self._timer.start()
        if is_full:
            self.flush()

    @mongo_operation
    def flush(self) -> None:
        """Write all waiting steps, of every thread, and return when they are written.

        Raises:
            MongoError: MongoDB stayed away, or refuses; the steps still wait.
        """
        # The next steps are written while the items of these are.
        with self._steps_lock:
            entries = self._take()
            with self._kept_unless_written(entries):
                _write_steps(self._steps, entries)
            self._items_lock.acquire()
        try:
            with self._kept_unless_written(entries):
                _write_items(self._items, entries)
        finally:
            self._items_lock.release()
        self._count(entries)

    def _count(self, entries: Sequence["_Entry"]) -> None:
        changes: defaultdict[tuple[RunId, int, str], Counter[str]] = defaultdict(Counter)
        for entry in entries:
            step = entry.step
            of_stage = changes[step.run_id, step.run_attempt, step.entity_type]
            for name, change in entry.changes.items():
                of_stage[name] += change
        for (run_id, number, entity_type), changed in changes.items():
            self.live.add(RunAttempt(run_id, number), entity_type, changed)

    @contextmanager
    def _kept_unless_written(self, entries: Sequence["_Entry"]) -> Iterator[None]:
        try:
            yield
        except PyMongoError:
            with self._waiting_lock:
                self._waiting[:0] = entries
            raise

    def _take(self) -> list["_Entry"]:
        with self._waiting_lock:
            entries, self._waiting = self._waiting, []
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None
            return entries

    def _flush_by_timer(self) -> None:
        try:
            self.flush()
        except MongoError as error:
            _logger.warning("The audit trail is behind, MongoDB does not take steps: %s", error)


@dataclass(frozen=True)
class _Entry:
    """A step that waits; `insert` is its write while it is new, `changes` what it counts."""

    step: Step
    insert: InsertOne[Document] | None
    item: ItemWrite | None
    changes: Mapping[str, int]


def _write_steps(collection: Collection[Document], entries: Sequence[_Entry]) -> None:
    """Write steps; one that a later attempt of its run has written stays as it is.

    A step that collides gets a second try: it is not new, or another process has just inserted it.
    """
    collided = write_all(collection, [each.insert or upsert_of(each.step) for each in entries])
    write_all(collection, [upsert_of(entries[position].step) for position in collided])


def _write_items(collection: Collection[Document], entries: Sequence[_Entry]) -> None:
    """Write items; one that its filter keeps from being written over stays as it is.

    A write that collides gets a second try: another process may have just inserted the item.
    """
    writes = [each.item for each in entries if each.item is not None]
    write_all(collection, [writes[position] for position in write_all(collection, writes)])
