"""The faults of Stage 1 in a round: seed, request id and attempt decide them, so they repeat."""

from dataclasses import dataclass
from enum import StrEnum, auto
from random import Random
from typing import Final

from scripts.local.hub import Fault
from tasks.errors import TEMPORARY_UNAVAILABLE

FAULTY_SHARE: Final = 0.1
"""Share of all attempts that go wrong."""
THROTTLED_SHARE: Final = 0.001
"""Share that is throttled, as a part of these: more would be a limiter, and slow the sync down."""
_SLOWEST: Final = (0.8, 1.2)
"""Shortest and longest time of a slow answer, in client timeouts."""


class FaultKind(StrEnum):
    """Ways in which an attempt goes wrong; `DROPPED_AFTER` and `SLOW` store the item."""

    SERVER_ERROR = auto()
    UNAVAILABLE = auto()
    TOO_MANY_REQUESTS = auto()
    TEMPORARY_UNAVAILABLE = auto()
    DROPPED_BEFORE = auto()
    DROPPED_AFTER = auto()
    GARBAGE = auto()
    SLOW = auto()


_THROTTLING: Final = (FaultKind.UNAVAILABLE, FaultKind.TOO_MANY_REQUESTS)
_AT_FIRST: Final = [kind for kind in FaultKind if kind not in _THROTTLING]
_LATER: Final = [kind for kind in _AT_FIRST if kind is not FaultKind.GARBAGE]
"""Garbage fails an item for good: at every attempt, three runs would not be enough."""
_FAULTS: Final = {
    FaultKind.SERVER_ERROR: Fault(status=500, body={}),
    FaultKind.UNAVAILABLE: Fault(status=503, body={}, retry_after="1"),
    FaultKind.TOO_MANY_REQUESTS: Fault(status=429, body={}, retry_after="1"),
    FaultKind.TEMPORARY_UNAVAILABLE: Fault(status=200, code=TEMPORARY_UNAVAILABLE),
    FaultKind.DROPPED_BEFORE: Fault(drop=True),
    FaultKind.DROPPED_AFTER: Fault(drop=True, after_store=True),
    FaultKind.GARBAGE: Fault(garbage=True),
    FaultKind.SLOW: Fault(),
}


@dataclass(frozen=True)
class PlannedFault:
    """A fault of one attempt; a slow answer has a delay."""

    kind: FaultKind
    delay_ms: int = 0

    def as_fault(self) -> Fault:
        return _FAULTS[self.kind].model_copy(update={"delay_ms": self.delay_ms})


@dataclass(frozen=True)
class FaultPlan:
    """The faults of a round; the client waits `timeout_seconds` for an answer."""

    seed: int
    timeout_seconds: float

    def fault(self, request_id: str | None, attempt: int) -> PlannedFault | None:
        """Return the fault of an attempt, counted from 1 for each request id; None for most."""
        dice = Random(f"{self.seed}|{request_id}|{attempt}")
        luck = dice.random()
        if luck < THROTTLED_SHARE:
            return PlannedFault(dice.choice(_THROTTLING))
        if luck >= FAULTY_SHARE:
            return None
        kind = dice.choice(_LATER if attempt > 1 else _AT_FIRST)
        if kind is not FaultKind.SLOW:
            return PlannedFault(kind)
        seconds = dice.uniform(*_SLOWEST) * self.timeout_seconds
        return PlannedFault(kind, round(1_000 * seconds))
