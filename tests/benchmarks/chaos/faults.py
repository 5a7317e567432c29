"""How Stage 1 misbehaves in a round: decided by seed, request id and attempt, so repeatable."""

from dataclasses import dataclass
from enum import StrEnum, auto
from random import Random
from typing import Final

FAULTY_SHARE: Final = 0.1
"""Of all attempts, how many go wrong."""
_SLOWEST: Final = (0.8, 1.2)
"""How long a slow answer takes, in client timeouts."""


class Fault(StrEnum):
    """What goes wrong with an attempt; `DROPPED_AFTER` and `SLOW` come after storing."""

    SERVER_ERROR = auto()
    UNAVAILABLE = auto()
    TOO_MANY_REQUESTS = auto()
    TEMPORARY_UNAVAILABLE = auto()
    DROPPED_BEFORE = auto()
    DROPPED_AFTER = auto()
    GARBAGE = auto()
    SLOW = auto()


_EVER: Final = [fault for fault in Fault if fault is not Fault.GARBAGE]
"""Garbage is an error for good: were it not for first attempts only, no three runs would do."""


@dataclass(frozen=True)
class Treatment:
    """What becomes of one attempt; without a fault it is answered as usual, at once."""

    fault: Fault | None = None
    delay_seconds: float = 0.0


@dataclass(frozen=True)
class FaultPlan:
    """The faults of a round, against a client that waits `timeout_seconds` for an answer."""

    seed: int
    timeout_seconds: float

    def treatment(self, request_id: str, attempt: int) -> Treatment:
        """Return what becomes of an attempt, counted from 1 for each request id."""
        dice = Random(f"{self.seed}|{request_id}|{attempt}")
        if dice.random() >= FAULTY_SHARE:
            return Treatment()
        fault = dice.choice(_EVER if attempt > 1 else list(Fault))
        is_slow = fault is Fault.SLOW
        return Treatment(fault, dice.uniform(*_SLOWEST) * self.timeout_seconds if is_slow else 0.0)
