"""CircuitBreaker: whether an endpoint is up, as its last answers tell."""

import logging
import math

from tasks.errors import HUB_UNAVAILABLE, ItemError, StopReason

_logger = logging.getLogger(__name__)


class Permit:
    """Leave to send one request; the result of the request is reported with it.

    Requests share one permit while the endpoint is up. A probe has its own.
    """

    __slots__ = ()


class CircuitBreaker:
    """Trips after several transient failures in a row; then one request at a time, a probe, may go.

    Any other answer shows that the endpoint is up, and resets the breaker. A failure with an
    earlier permit, from before the breaker tripped or was reset, counts for nothing. Not
    thread-safe.

    `name` is that of the endpoint, `now` is seconds of `time.monotonic`.
    """

    def __init__(
        self, name: str, *, failures: int, probe_seconds: float, limit_seconds: float
    ) -> None:
        self.next_permit_at = 0.0
        """From when on a request may go (`time.monotonic`); never while a probe is under way."""
        self._name = name
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

    @property
    def has_tripped(self) -> bool:
        return self._tripped_at is not None

    def permit(self) -> Permit:
        """Return leave to send a request; to be called from `next_permit_at` on."""
        if self._tripped_at is not None:
            self.next_permit_at = math.inf
        return self._permit

    def succeed(self, now: float) -> None:
        """Record that the endpoint has answered; reset the breaker."""
        self._failures = 0
        if self._tripped_at is not None:
            _logger.warning(
                "%s is back after %.1f s: sending goes on", self._name, now - self._tripped_at
            )
            self._tripped_at = None
            self._renew_permit(0.0)

    def fail(self, permit: Permit, error: ItemError, now: float) -> StopReason | None:
        """Record a transient failure; return why to stop once it was down for the limit."""
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
        return self._unavailable(down_for, error) if down_for >= self._limit_seconds else None

    def counts(self, permit: Permit) -> bool:
        """Return whether a failure with that permit says anything of the endpoint by now."""
        return permit is self._permit

    def disregard(self) -> None:
        """Let failures of requests that are under way count for nothing."""
        self._renew_permit(self.next_permit_at)

    def abandon(self, permit: Permit) -> None:
        """Record that a request has no result; if it was the probe, another may go."""
        if permit is self._permit and self._tripped_at is not None:
            self._renew_permit(0.0)

    def _renew_permit(self, next_permit_at: float) -> None:
        self.next_permit_at = next_permit_at
        self._permit = Permit()

    def _log_trip(self, error: ItemError) -> None:
        _logger.warning(
            "%s is down (%d transient failures in a row, the last %s: %s): "
            "sending waits, and probes every %g s",
            self._name,
            self._failures,
            error.code,
            error.message,
            self._probe_seconds,
        )

    def _unavailable(self, seconds: float, error: ItemError) -> StopReason:
        message = (
            f"{HUB_UNAVAILABLE}: {self._name} was down for {seconds:.1f} s, "
            f"the last failure {error.code}: {error.message}"
        )
        return StopReason(message, HUB_UNAVAILABLE)
