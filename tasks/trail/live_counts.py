"""LiveCounts: what has become of the items of stages that go on, in `sync_runs` while they do."""

import threading
import time
from collections import Counter
from collections.abc import Mapping
from typing import Final

from tasks.errors import SUPERSEDED, WOULD_SEND, ErrorClass, ItemError
from tasks.trail.fields import RunAttempt
from tasks.trail.stages import Stages
from tasks.trail.steps import PriorStep, Step

_WRITE_SECONDS: Final = 1.0
"""How often what was added is written, as long as something is added."""
_COUNT_BY_CLASS: Final = {
    None: "success",
    ErrorClass.TRANSIENT: "retrying",
    ErrorClass.PERMANENT: "failed",
    ErrorClass.RUN_STOPPING: "failed",
    ErrorClass.SKIPPED: "skipped",
}
_COUNT_BESIDE: Final = {SUPERSEDED: "superseded", WOULD_SEND: "would_send"}
"""Counts that some of the skipped items are in, too."""


class LiveCounts:
    """Adds up what changes in the counts of stages, of all threads of a process.

    It is a measure: the end of a stage counts its steps, whatever was added here.
    """

    def __init__(self, stages: Stages) -> None:
        self._stages = stages
        self._lock = threading.Lock()
        self._pending: dict[tuple[RunAttempt, str], Counter[str]] = {}
        self._written_at = 0.0

    def add(self, attempt: RunAttempt, entity_type: str, changes: Mapping[str, int]) -> None:
        """Take in by how much counts of a stage change; it is written a second later at most.

        The last of it is, where `write` is called so often.
        """
        with self._lock:
            self._pending.setdefault((attempt, entity_type), Counter()).update(changes)
            is_due = time.monotonic() - self._written_at >= _WRITE_SECONDS
        if is_due:
            self.write()

    def write(self) -> None:
        """Write what was added; what can't be written waits for the next time."""
        with self._lock:
            pending, self._pending = self._pending, {}
            self._written_at = time.monotonic()
        for (attempt, entity_type), changes in pending.items():
            if not self._stages.count(attempt, entity_type, changes):
                with self._lock:
                    self._pending.setdefault((attempt, entity_type), Counter()).update(changes)


def changes_by(step: Step, replaced: PriorStep | None) -> Mapping[str, int]:
    """Return by how much a step changes the counts of its stage.

    Args:
        step: the step.
        replaced: the step of its document that it takes the place of; None for none. One of an
            earlier attempt counts as far as the item is in: see `Stages.begin`.
    """
    counts = _counts_with(step.error)
    if replaced and (replaced.error is None or replaced.run_attempt == step.run_attempt):
        changes = Counter(counts)
        changes.subtract(_counts_with(replaced.error))
        return changes
    return counts


def _counts_with(error: ItemError | None) -> dict[str, int]:
    counts = {_COUNT_BY_CLASS[error.error_class if error else None]: 1}
    if error is not None and error.code in _COUNT_BESIDE:
        counts[_COUNT_BESIDE[error.code]] = 1
    return counts
