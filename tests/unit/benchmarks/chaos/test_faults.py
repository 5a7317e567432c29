"""The faults of a chaos round: as many as there should be, of all kinds, and repeatable."""

import pytest

from tests.benchmarks.chaos.faults import FAULTY_SHARE, THROTTLED_SHARE, FaultKind, FaultPlan

PLAN = FaultPlan(seed=1, timeout_seconds=1)
THROTTLING = {FaultKind.UNAVAILABLE, FaultKind.TOO_MANY_REQUESTS}
ATTEMPTS = [(f"request {n}", attempt) for n in range(10_000) for attempt in (1, 2)]


def test_a_tenth_of_the_attempts_go_wrong_in_all_ways_and_repeatably() -> None:
    faults = [PLAN.fault(*attempt) for attempt in ATTEMPTS]
    kinds = [fault.kind for fault in faults if fault]
    assert set(kinds) == set(FaultKind)
    assert len(kinds) / len(ATTEMPTS) == pytest.approx(FAULTY_SHARE, rel=0.2)
    assert faults == [FaultPlan(1, 1).fault(*attempt) for attempt in ATTEMPTS]
    assert faults != [FaultPlan(2, 1).fault(*attempt) for attempt in ATTEMPTS]


def test_few_attempts_are_throttled() -> None:
    faults = [PLAN.fault(*attempt) for attempt in ATTEMPTS]
    throttled = sum(fault is not None and fault.kind in THROTTLING for fault in faults)
    assert throttled / len(ATTEMPTS) == pytest.approx(THROTTLED_SHARE, rel=0.5)


def test_garbage_comes_at_first_attempts_only() -> None:
    faults = [PLAN.fault(f"request {n}", 2) for n in range(10_000)]
    assert FaultKind.GARBAGE not in {fault.kind for fault in faults if fault}
