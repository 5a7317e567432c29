"""Server waits: for how long a run waited because Prefect's server was busy, and what ends that."""

import logging
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from prefect import get_run_logger

from tasks.trail.fields import RunId

_CLIENT_LOGGER: Final = logging.getLogger("prefect.client")
"""Where all of Prefect's clients tell, at level DEBUG, that they wait before they ask again."""
_WAIT: Final = re.compile(r"status code 503\. Another attempt will be made in ([\d.]+)s")
_LEAST_SECONDS: Final = 1.0
"""Shorter waits of a run are not worth a notice."""


class ServerWaits:
    """Waits for a server that was busy; while several requests wait at once, time counts once."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._waits_until = 0.0
        self._lock = threading.Lock()

    def add(self, at: float, seconds: float) -> None:
        """Count a wait of that many seconds, which begins at a time in seconds."""
        with self._lock:
            end = at + seconds
            self.seconds += max(0.0, end - max(at, self._waits_until))
            self._waits_until = max(end, self._waits_until)

    @property
    def notice(self) -> str | None:
        """Tell the operator how long they were, and what ends them; None where they are short."""
        if self.seconds < _LEAST_SECONDS:
            return None
        return (
            f"Requests of this run waited {self.seconds:.1f} s, because Prefect's server was busy "
            "(HTTP 503). A stock server on SQLite often is: put PostgreSQL under it, or use this "
            "project's own server, python -m scripts.local.prefect"
        )


_waits_of: Final[dict[RunId, ServerWaits]] = {}
"""Waits of each run that this process has executed: its results are told when it has ended."""


@contextmanager
def server_waits_told(run_id: RunId) -> Iterator[None]:
    """Count in the block how long a run waits for Prefect's server, and log it once at the end."""
    waits = _waits_of[run_id] = ServerWaits()
    try:
        with _counted(waits):
            yield
    finally:
        if waits.notice:
            get_run_logger().warning(waits.notice)


def notice_of(run_id: RunId) -> str | None:
    """Return what a run that this process has executed says of its waits for Prefect's server."""
    waits = _waits_of.get(run_id)
    return waits.notice if waits else None


@contextmanager
def _counted(waits: ServerWaits) -> Iterator[None]:
    """Count the waits of this process in the block; what is logged stays the same."""
    level = _CLIENT_LOGGER.level
    least = _CLIENT_LOGGER.getEffectiveLevel()

    def count(record: logging.LogRecord) -> bool:
        if wait := _WAIT.search(record.getMessage()):
            waits.add(record.created, float(wait[1]))
        return record.levelno >= least

    _CLIENT_LOGGER.addFilter(count)
    _CLIENT_LOGGER.setLevel(logging.DEBUG)
    try:
        yield
    finally:
        _CLIENT_LOGGER.setLevel(level)
        _CLIENT_LOGGER.removeFilter(count)
