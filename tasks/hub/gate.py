"""SendGate: whether a process may send to Stage 1 for a run: now, later, or never again."""

import logging
import math
import threading
import time
from collections.abc import Callable
from typing import Final

from tasks.errors import HUB_UNAVAILABLE, ErrorClass, ItemError, StopReason

_logger = logging.getLogger(__name__)

_LOOK_SECONDS: Final = 1.0


class Passage:
    """Leave to send one request; what comes of the request is reported with it.

    Requests share one as long as all is well. A probe has its own.
    """

    __slots__ = ()


class CircuitBreaker:
    """Trips after so many transient failures in a row; then only one request at a time, a probe.

    Any other answer shows that Stage 1 is up, and ends that. A failure whose passage is of an
    earlier time, before the breaker tripped or recovered, says nothing. Not thread-safe.
    """

    def __init__(self, *, failures: int, probe_seconds: float, limit_seconds: float) -> None:
        self.passable_at = 0.0
        """From when on a request may pass (`time.monotonic`); never while a probe is under way."""
        self._max_failures = failures
        self._probe_seconds = probe_seconds
        self._limit_seconds = limit_seconds
        self._failures = 0
        self._tripped_at: float | None = None
        self._passage = Passage()

    @property
    def has_failures(self) -> bool:
        """Whether a success would change anything."""
        return self._failures > 0

    def passage(self) -> Passage:
        """Return leave to send a request; to be asked for from `passable_at` on."""
        if self._tripped_at is not None:
            self.passable_at = math.inf
        return self._passage

    def succeed(self) -> None:
        """Take in that Stage 1 has done its work."""
        self._failures = 0
        if self._tripped_at is not None:
            _logger.warning(
                "Stage 1 is back after %.1f s: sending goes on", time.monotonic() - self._tripped_at
            )
            self._tripped_at = None
            self._admit_from(0.0)

    def fail(self, passage: Passage, error: ItemError) -> StopReason | None:
        """Take in a transient failure; return why to stop once the limit is past."""
        if passage is not self._passage:
            return None
        now = time.monotonic()
        if self._tripped_at is None:
            self._failures += 1
            if self._failures < self._max_failures:
                return None
            self._tripped_at = now
            self._tell_of_trip(error)
        self._admit_from(now + self._probe_seconds)
        down_for = now - self._tripped_at
        return _hub_unavailable(down_for, error) if down_for >= self._limit_seconds else None

    def give_back(self, passage: Passage) -> None:
        """Take in that nothing is known of a request: if it was the probe, another may be."""
        if passage is self._passage and self._tripped_at is not None:
            self._admit_from(0.0)

    def _admit_from(self, moment: float) -> None:
        self.passable_at = moment
        self._passage = Passage()

    def _tell_of_trip(self, error: ItemError) -> None:
        _logger.warning(
            "Stage 1 is down (%d transient failures in a row, the last %s: %s): "
            "sending waits, and probes every %g s",
            self._failures,
            error.code,
            error.message,
            self._probe_seconds,
        )


class SendGate:
    """Lets requests through, holds them for a while, or is closed for good.

    It holds them for a `Retry-After` and while the breaker has tripped. Libraries' breakers raise
    at once where this one lets all senders of the process wait. Each process of a Dask run has a
    gate and a breaker of its own. Another process may close the gate too: `look` says why, and is
    asked once a second.
    """

    def __init__(self, look: Callable[[], StopReason | None], breaker: CircuitBreaker) -> None:
        self._look = look
        self._looks_at = 0.0
        self._breaker = breaker
        self._held_until = 0.0
        self._changed = threading.Condition()
        self.closed_because: StopReason | None = None

    def close(self, reason: StopReason) -> None:
        """Let nothing more through; the first reason stays."""
        with self._changed:
            self.closed_because = self.closed_because or reason
            self._changed.notify_all()

    def hold(self, seconds: float) -> None:
        """Let nothing through for that long from now."""
        with self._changed:
            self._held_until = max(self._held_until, time.monotonic() + seconds)

    def is_open(self) -> bool:
        """Whether something may still be sent, now or later."""
        return self._closed_by_now() is None

    def pass_through(self) -> Passage | StopReason:
        """Wait while requests are held; return why there is no leave once the gate is closed.

        What comes of the request is to be reported with the passage, or the passage given back.
        """
        while True:
            if leave := self._closed_by_now() or self._pass_or_wait():
                return leave

    def report(self, passage: Passage, error: ItemError | None) -> StopReason | None:
        """Say what came of a request; return why the run is to be stopped, if it is."""
        failure = error if error and error.error_class is ErrorClass.TRANSIENT else None
        if failure is None and not self._breaker.has_failures:
            return None
        with self._changed:
            self._changed.notify_all()
            if failure is not None:
                return self._breaker.fail(passage, failure)
            self._breaker.succeed()
            return None

    def give_back(self, passage: Passage) -> None:
        """Say that nothing came of a request, not even a failure."""
        with self._changed:
            self._breaker.give_back(passage)
            self._changed.notify_all()

    def _pass_or_wait(self) -> Passage | None:
        with self._changed:
            seconds = max(self._held_until, self._breaker.passable_at) - time.monotonic()
            if seconds <= 0:
                return self._breaker.passage()
            self._changed.wait(min(seconds, _LOOK_SECONDS))
            return None

    def _closed_by_now(self) -> StopReason | None:
        if time.monotonic() >= self._looks_at:
            self._look_around()
        return self.closed_because

    def _look_around(self) -> None:
        with self._changed:
            self._looks_at = time.monotonic() + _LOOK_SECONDS
        if reason := self._look():
            self.close(reason)


def _hub_unavailable(seconds: float, error: ItemError) -> StopReason:
    message = (
        f"{HUB_UNAVAILABLE}: Stage 1 was down for {seconds:.1f} s, "
        f"the last failure {error.code}: {error.message}"
    )
    return StopReason(message, HUB_UNAVAILABLE)
