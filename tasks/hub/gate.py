"""SendGate: decides whether a process may send to an endpoint for a run: now, later, or no more."""

import logging
import threading
import time
from collections.abc import Callable
from http import HTTPStatus
from typing import Final

from tasks.errors import LeaveReason, StopReason
from tasks.hub.answer import UpsertOutcome
from tasks.hub.breaker import CircuitBreaker, Permit
from tasks.hub.pace import Pace

_logger = logging.getLogger(__name__)

_LOOK_SECONDS: Final = 1.0
_NEWS: Final = 0.1
"""Share by which a rate has to change in a second to be told anew."""


class SendGate:
    """Admits requests to an endpoint, holds them for a while, or is closed for good.

    It holds them as the pace says, and while the breaker has tripped. Libraries' breakers raise
    at once; this one makes all senders of the process wait. Each process of a Dask run has gates
    of its own.

    Args:
        name: of the endpoint.
        look: returns why another process has closed the gate; called once a second, and no sender
            goes on meanwhile: a process that was stopped for a while sends nothing before it.
        tell: takes at how many requests a second the gate holds them, 0 while it admits none,
            None once it holds them no more.
        breaker: that of the endpoint.
        longest_pause_seconds: how long a `Retry-After` may hold requests.
    """

    def __init__(
        self,
        name: str,
        look: Callable[[], StopReason | None],
        tell: Callable[[float | None], None],
        breaker: CircuitBreaker,
        *,
        longest_pause_seconds: float,
    ) -> None:
        self._name = name
        self._look = look
        self._looks_at = 0.0
        self._looking = threading.Lock()
        self._tell = tell
        self._told: float | None = None
        self._tells_at = 0.0
        self._breaker = breaker
        self._pace = Pace()
        self._longest_pause_seconds = longest_pause_seconds
        self._has_throttled = False
        self._changed = threading.Condition()
        self.closed_because: StopReason | None = None

    def close(self, reason: StopReason) -> None:
        """Admit nothing more; the first reason stays, unless the run is then to be left."""
        with self._changed:
            if self.closed_because is None or isinstance(reason, LeaveReason):
                self.closed_because = reason
            self._changed.notify_all()

    def is_open(self) -> bool:
        """Return whether something may still be sent, now or later."""
        return self._closed_by_now() is None

    def admit(self) -> Permit | StopReason:
        """Wait while requests are held; return a permit, or the reason once the gate is closed.

        A permit has to be handed back with `report` or `abandon`.
        """
        while True:
            if permit := self._closed_by_now() or self._permit_or_wait():
                if self._told is not None:
                    self._tell_news()
                return permit

    def report(self, permit: Permit, outcome: UpsertOutcome) -> StopReason | None:
        """Record the result of a request; return why no more may go there, if none may."""
        now = time.monotonic()
        if outcome.error is None or not outcome.is_transient:
            self._pace.answer(now)
            if self._breaker.has_failures:
                self._succeed(now)
            return None
        with self._changed:
            self._changed.notify_all()
            is_news = self._breaker.counts(permit)
            reason = self._breaker.fail(permit, outcome.error, now)
            if outcome.is_throttled:
                # A request that was sent again at once did not wait for its turn.
                self._slow_down(outcome, now, is_news=is_news and not outcome.was_resent)
        self._tell_news()
        return reason

    def abandon(self, permit: Permit) -> None:
        """Record that a request has no result, not even a failure."""
        with self._changed:
            self._breaker.abandon(permit)
            self._changed.notify_all()

    def _succeed(self, now: float) -> None:
        with self._changed:
            self._changed.notify_all()
            if self._breaker.has_tripped:
                self._pace.restart(now)
            self._breaker.succeed(now)
        self._tell_news()

    def _slow_down(self, outcome: UpsertOutcome, now: float, *, is_news: bool) -> None:
        asked_for = outcome.retry_after_seconds
        self._pace.pause(now + min(asked_for or 0.0, self._longest_pause_seconds))
        is_sure = asked_for is not None or outcome.http_status == HTTPStatus.TOO_MANY_REQUESTS
        if is_news and not self._breaker.has_tripped and self._pace.throttle(now, is_sure=is_sure):
            self._breaker.disregard()
            self._log_once(outcome)

    def _permit_or_wait(self) -> Permit | None:
        with self._changed:
            now = time.monotonic()
            seconds = max(self._pace.next_at, self._breaker.next_permit_at) - now
            if seconds > 0:
                self._changed.wait(min(seconds, _LOOK_SECONDS))
                return None
            if self._pace.is_held:
                self._pace.take(now)
            return self._breaker.permit()

    def _closed_by_now(self) -> StopReason | None:
        if time.monotonic() >= self._looks_at:
            self._look_around()
        return self.closed_because

    def _look_around(self) -> None:
        with self._looking:
            if time.monotonic() < self._looks_at:  # another sender has just looked
                return
            try:
                if reason := self._look():
                    self.close(reason)
            finally:
                self._looks_at = time.monotonic() + _LOOK_SECONDS

    def _tell_news(self) -> None:
        with self._changed:
            now = time.monotonic()
            rate = self._rate(now)
            if rate == self._told or not self._is_news(rate, now):
                return
            self._told, self._tells_at = rate, now + _LOOK_SECONDS
        self._tell(rate)

    def _rate(self, now: float) -> float | None:
        if self._breaker.has_tripped or self._pace.resumes_at > now + _LOOK_SECONDS:
            return 0.0
        return self._pace.rate(now) if self._pace.is_held else None

    def _is_news(self, rate: float | None, now: float) -> bool:
        if not rate or not self._told:
            return True
        return now >= self._tells_at and abs(rate - self._told) > _NEWS * self._told

    def _log_once(self, outcome: UpsertOutcome) -> None:
        if self._has_throttled or outcome.error is None:
            return
        self._has_throttled = True
        _logger.warning(
            "%s throttles (%s: %s): requests go as fast as it takes them",
            self._name,
            outcome.error.code,
            outcome.error.message,
        )
