"""Pace: how fast requests go to an endpoint that throttles them.

The rate is found as TCP finds it: slow start, then CUBIC (RFC 9438; the adaptive retry mode of AWS
SDKs does the same). A throttled request cuts the rate at once; it climbs back to a bit below what
was too fast, stays there for a while, then tries for more. Each process finds its own share.
"""

import math
from collections import deque
from typing import Final

LEAST_RATE: Final = 1.0
"""Requests a second that always go."""
_DOUBLING_SECONDS: Final = 0.5
"""In slow start, the time in which the rate doubles."""
_TARGET: Final = 0.95
"""Where the rate climbs back to, as a share of that which was too fast."""
_CUT: Final = 0.15
"""By how much of that it is cut before."""
_RECOVERY_SECONDS: Final = 15.0
"""How long it takes to climb back."""
_FREE_RATE: Final = 2_000.0
"""Requests a second that no process reaches: from here on nothing is held."""
_MOST_DOUBLINGS: Final = 20.0
_ALONE: Final = 20
"""A 503 after so many answers may be a fault of its own; the next one soon after is none."""


class Pace:
    """The rate of the requests of one process to one endpoint. Not thread-safe but for `answer`.

    `now` and the like are seconds of `time.monotonic`, rates requests a second.
    """

    def __init__(self) -> None:
        self.next_at = 0.0
        """From when on the next request may go."""
        self.resumes_at = 0.0
        """Until when nothing goes at all, because the endpoint asked for that."""
        self._cut_at: float | None = None
        self._first_rate = LEAST_RATE
        self._limit: float | None = None
        self._answered: deque[float] = deque(maxlen=int(_FREE_RATE))
        self._doubted_at = -math.inf

    @property
    def is_held(self) -> bool:
        """Whether requests have to wait for each other."""
        return self._cut_at is not None

    def rate(self, now: float) -> float:
        """Return the rate; infinity where nothing is held."""
        if self._cut_at is None:
            return math.inf
        seconds = max(0.0, now - self._cut_at)
        if self._limit is None:
            doublings = min(seconds / _DOUBLING_SECONDS, _MOST_DOUBLINGS)
            return float(self._first_rate * 2**doublings)
        cubic = (1 - seconds / _RECOVERY_SECONDS) ** 3
        return max(LEAST_RATE, self._limit * (1 - _CUT * cubic))

    def take(self, now: float) -> None:
        """Record that a request goes; to be called from `next_at` on."""
        rate = self.rate(now)
        if rate >= _FREE_RATE:
            self._cut_at = self._limit = None
            self.next_at = 0.0
        else:
            self.next_at = now + 1 / rate

    def answer(self, now: float) -> None:
        """Record an answer of an endpoint that does not throttle."""
        self._answered.append(now)

    def restart(self, now: float) -> None:
        """Forget what was too fast: the endpoint was down, and is back."""
        if self.is_held:
            self._first_rate, self._limit, self._cut_at = LEAST_RATE, None, now

    def pause(self, until: float) -> None:
        """Let nothing go before a moment; the latest one counts."""
        self.resumes_at = max(self.resumes_at, until)
        self.next_at = max(self.next_at, self.resumes_at)

    def throttle(self, now: float, *, is_sure: bool) -> bool:
        """Record that a request was throttled; return whether that has cut the rate.

        Args:
            now: when it was.
            is_sure: whether it can be nothing but throttling.
        """
        if not is_sure and self._is_alone(now):
            return False
        if self._cut_at is None:
            self._first_rate = max(LEAST_RATE, (1 - _CUT) * self._answered_since(now - 1.0))
        else:
            self._limit = _TARGET * self.rate(now)
        self._cut_at = max(self.resumes_at, now)
        self.next_at = max(self.resumes_at, now + 1 / self.rate(now))
        return True

    def _is_alone(self, now: float) -> bool:
        before, self._doubted_at = self._doubted_at, now
        return len(self._answered) >= _ALONE and self._answered[-_ALONE] > before

    def _answered_since(self, moment: float) -> int:
        return sum(answered_at > moment for answered_at in self._answered.copy())
