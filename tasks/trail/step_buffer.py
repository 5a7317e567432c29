"""StepBuffer: collects the steps of all threads of a process, and writes them in bulk."""

import logging
import threading
from collections.abc import Sequence
from typing import Final

from pymongo import UpdateOne
from pymongo.collection import Collection
from pymongo.errors import BulkWriteError, PyMongoError

from tasks.mongo import Document, MongoRetry, mongo_operation
from tasks.mongo_errors import UNIQUE_INDEX, MongoError
from tasks.trail.steps import Step, upsert_of

_logger = logging.getLogger(__name__)

STEPS_BEHIND: Final = 50
"""At most this many steps of the process wait to be written, beside those being written."""
SECONDS_BEHIND: Final = 1.0
"""At most this long does a step wait to be written."""


class StepBuffer:
    """Holds steps that are not written yet: `STEPS_BEHIND` or `SECONDS_BEHIND` at most.

    While they can't be written, a thread that records one waits: beside those being written, each
    thread adds one at most.
    """

    def __init__(self, steps: Collection[Document], retry: MongoRetry) -> None:
        self._steps = steps
        self._retry = retry
        self._waiting: list[UpdateOne] = []
        self._waiting_lock = threading.Lock()
        self._writing_lock = threading.Lock()
        self._timer: threading.Timer | None = None

    def record(self, step: Step) -> None:
        """Take a step in; it is written soon.

        Raises:
            MongoError: MongoDB stayed away, or refuses; the steps still wait.
        """
        with self._waiting_lock:
            self._waiting.append(upsert_of(step))
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
        with self._writing_lock:
            steps = self._take()
            try:
                self._write(steps)
            except PyMongoError:
                with self._waiting_lock:
                    self._waiting[:0] = steps
                raise

    def _take(self) -> list[UpdateOne]:
        with self._waiting_lock:
            steps, self._waiting = self._waiting, []
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None
            return steps

    def _write(self, steps: Sequence[UpdateOne]) -> None:
        """Write steps; one that a later attempt of its run has written stays as it is.

        A step that collides gets a second try: another process may have been about to insert it.
        """
        self._write_once(self._write_once(steps))

    def _write_once(self, steps: Sequence[UpdateOne]) -> list[UpdateOne]:
        """Write steps and return those that collided with the same step of another process."""
        if not steps:
            return []
        try:
            self._steps.bulk_write(steps, ordered=False)
        except BulkWriteError as error:
            faults = error.details["writeErrors"]
            is_lost = error.details["writeConcernErrors"]
            if is_lost or any(fault["code"] != UNIQUE_INDEX for fault in faults):
                raise
            return [steps[fault["index"]] for fault in faults]
        return []

    def _flush_by_timer(self) -> None:
        try:
            self.flush()
        except MongoError as error:
            _logger.warning("The audit trail is behind, MongoDB does not take steps: %s", error)
