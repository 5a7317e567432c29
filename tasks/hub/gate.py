"""SendGate: decides whether a process may send to Stage 1 for a run: now, later, or never again."""

import logging
import math
import threading
import time
from collections.abc import Callable
from typing import Final

from tasks.errors import HUB_UNAVAILABLE, ErrorClass, ItemError, StopReason

_logger = logging.getLogger(__name__)

_LOOK_SECONDS: Final = 1.0


class Permit:
    """Leave to send one request; the result of the request is reported with it.

    Requests share one permit while Stage 1 is up. A probe has its own.
    """

    __slots__ = ()


class CircuitBreaker:
    """Trips after several transient failures in a row; then one request at a time, a probe, may go.

    Any other answer shows that Stage 1 is up, and resets the breaker. A failure with an earlier
    permit, from before the breaker tripped or was reset, counts for nothing. Not thread-safe.

    `now` is seconds of `time.monotonic`.
    """

    def __init__(self, *, failures: int, probe_seconds: float, limit_seconds: float) -> None:
        self.next_permit_at = 0.0
        """From when on a request may go (`time.monotonic`); never while a probe is under way."""
        self._max_failures = failures
        self._probe_seconds = probe_seconds
        self._limit_seconds = limit_seconds
        self._failures = 0
        self._tripped_at: float | None = None
        self._permit = Permit()

    @property
    def has_failures(self) -> bool:
        """Whether a success would change anything."""
        return self._failures > 0

    def permit(self) -> Permit:
        """Return leave to send a request; to be called from `next_permit_at` on."""
        if self._tripped_at is not None:
            self.next_permit_at = math.inf
        return self._permit

    def succeed(self, now: float) -> None:
        """Record that Stage 1 has answered; reset the breaker."""
        self._failures = 0
        if self._tripped_at is not None:
            _logger.warning("Stage 1 is back after %.1f s: sending goes on", now - self._tripped_at)
            self._tripped_at = None
            self._renew_permit(0.0)

    def fail(self, permit: Permit, error: ItemError, now: float) -> StopReason | None:
        """Record a transient failure; return why to stop once Stage 1 was down for the limit."""
        if permit is not self._permit:
            return None
        if self._tripped_at is None:
            self._failures += 1
            if self._failures < self._max_failures:
                return None
            self._tripped_at = now
            self._log_trip(error)
        self._renew_permit(now + self._probe_seconds)
        down_for = now - self._tripped_at
        return _hub_unavailable(down_for, error) if down_for >= self._limit_seconds else None

    def abandon(self, permit: Permit) -> None:
        """Record that a request has no result; if it was the probe, another may go."""
        if permit is self._permit and self._tripped_at is not None:
            self._renew_permit(0.0)

    def _renew_permit(self, next_permit_at: float) -> None:
        self.next_permit_at = next_permit_at
        self._permit = Permit()

    def _log_trip(self, error: ItemError) -> None:
        _logger.warning(
            "Stage 1 is down (%d transient failures in a row, the last %s: %s): "
            "sending waits, and probes every %g s",
            self._failures,
            error.code,
            error.message,
            self._probe_seconds,
        )


class SendGate:
    """Admits requests, holds them for a while, or is closed for good.

    It holds them for a `Retry-After` and while the breaker has tripped. Libraries' breakers raise
    at once; this one makes all senders of the process wait. Each process of a Dask run has a gate
    and a breaker of its own. Another process may close the gate too: `look` returns why, and is
    called once a second.
    """

    def __init__(self, look: Callable[[], StopReason | None], breaker: CircuitBreaker) -> None:
        self._look = look
        self._looks_at = 0.0
        self._breaker = breaker
        self._held_until = 0.0
        self._changed = threading.Condition()
        self.closed_because: StopReason | None = None

    def close(self, reason: StopReason) -> None:
        """Admit nothing more; the first reason stays."""
        with self._changed:
            self.closed_because = self.closed_because or reason
            self._changed.notify_all()

    def hold(self, seconds: float) -> None:
        """Admit nothing for that long from now; the longest hold counts."""
        with self._changed:
            self._held_until = max(self._held_until, time.monotonic() + seconds)

    def is_open(self) -> bool:
        """Return whether something may still be sent, now or later."""
        return self._closed_by_now() is None

    def admit(self) -> Permit | StopReason:
        """Wait while requests are held; return a permit, or the reason once the gate is closed.

        A permit has to be handed back with `report` or `abandon`.
        """
        while True:
            if permit := self._closed_by_now() or self._permit_or_wait():
                return permit

    def report(self, permit: Permit, error: ItemError | None) -> StopReason | None:
        """Record the result of a request; return why the run has to stop, if it has to."""
        failure = error if error and error.error_class is ErrorClass.TRANSIENT else None
        if failure is None and not self._breaker.has_failures:
            return None
        with self._changed:
            self._changed.notify_all()
            if failure is not None:
                return self._breaker.fail(permit, failure, time.monotonic())
            self._breaker.succeed(time.monotonic())
            return None

    def abandon(self, permit: Permit) -> None:
        """Record that a request has no result, not even a failure."""
        with self._changed:
            self._breaker.abandon(permit)
            self._changed.notify_all()

    def _permit_or_wait(self) -> Permit | None:
        with self._changed:
            seconds = max(self._held_until, self._breaker.next_permit_at) - time.monotonic()
            if seconds <= 0:
                return self._breaker.permit()
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
