"""The sweep's verdict: only a run whose process is gone is ended, by Prefect's clock."""

from datetime import datetime, timedelta
from typing import Any

import pytest
from bson import ObjectId
from prefect.client.schemas.objects import State, StateType
from prefect.states import AwaitingRetry

from flows.audit_sweep import PATIENCE_SECONDS, Verdict, verdict
from tasks.trail.ownership import UnfinishedRun
from tests.trail_documents import at

LET_BE, MIRROR, END = Verdict.LET_BE, Verdict.MIRROR, Verdict.END
LONG = 10 * PATIENCE_SECONDS
FINAL = [StateType.COMPLETED, StateType.FAILED, StateType.CANCELLED, StateType.CRASHED]
BEGUN = [StateType.PENDING, StateType.RUNNING, StateType.CANCELLING]


def run(silent_seconds: float | None, mirrored_at: datetime | None = None) -> UnfinishedRun:
    return UnfinishedRun(
        ObjectId(), "a flow run", silent_seconds=silent_seconds, mirrored_at=mirrored_at
    )


NO_RECORD = None
NOT_SPOKEN = run(None)
SILENT = run(45.0)


def state_of(state_type: StateType, age: float = LONG) -> State[Any]:
    """Return a state that is so many seconds old at the beginning of time."""
    return State(type=state_type, timestamp=at(-age))


def decided(run: UnfinishedRun | None, state: State[Any]) -> Verdict:
    return verdict(run, state, at(0))


@pytest.mark.parametrize(
    ("silent_seconds", "is_heard", "is_silent"),
    [
        (None, False, False),
        (-1.0, True, False),
        (0.0, True, False),
        (44.999, True, False),
        (45.0, False, True),
        (3_600.0, False, True),
    ],
)
def test_a_process_that_was_not_heard_of_for_45_s_is_gone(
    silent_seconds: float | None, is_heard: bool, is_silent: bool
) -> None:
    unfinished = run(silent_seconds)
    assert (unfinished.is_heard, unfinished.is_silent) == (is_heard, is_silent)


@pytest.mark.parametrize("state_type", [*FINAL, StateType.PAUSED])
@pytest.mark.parametrize("silent", [NO_RECORD, NOT_SPOKEN, SILENT])
@pytest.mark.parametrize("age", [0, LONG])
def test_what_prefect_says_of_a_run_without_a_process_is_carried_over(
    state_type: StateType, silent: UnfinishedRun | None, age: float
) -> None:
    assert decided(silent, state_of(state_type, age)) is MIRROR


@pytest.mark.parametrize("silent", [NO_RECORD, NOT_SPOKEN, SILENT])
def test_a_run_that_is_to_begin_later_is_let_be(silent: UnfinishedRun | None) -> None:
    assert decided(silent, state_of(StateType.SCHEDULED)) is LET_BE
    awaits_retry: State[Any] = AwaitingRetry(scheduled_time=at(-LONG))
    late = awaits_retry.model_copy(update={"timestamp": at(-LONG)})
    assert decided(silent, late) is LET_BE


@pytest.mark.parametrize("state_type", BEGUN)
@pytest.mark.parametrize("starting", [NO_RECORD, NOT_SPOKEN])
@pytest.mark.parametrize(
    ("age", "expected"), [(-1, LET_BE), (0, LET_BE), (299.9, LET_BE), (300, END), (LONG, END)]
)
def test_a_process_that_has_not_spoken_has_300_s_to_do_so(
    state_type: StateType, starting: UnfinishedRun | None, age: float, expected: Verdict
) -> None:
    assert decided(starting, state_of(state_type, age)) is expected


@pytest.mark.parametrize("age", [0, 299.9, 300, LONG])
def test_a_run_whose_process_has_fallen_silent_is_ended(age: float) -> None:
    known = run(45, at(-age))
    assert decided(known, state_of(StateType.RUNNING, age)) is END
    assert decided(known, state_of(StateType.CANCELLING, 0)) is END


@pytest.mark.parametrize(
    ("age", "expected"), [(0, LET_BE), (45, LET_BE), (299.9, LET_BE), (300, END), (LONG, END)]
)
@pytest.mark.parametrize("state_type", [StateType.PENDING, StateType.RUNNING])
@pytest.mark.parametrize("known_since", [None, -LONG - 1])
def test_the_next_attempt_of_a_silent_run_has_as_long_as_a_first_one(
    age: float, expected: Verdict, state_type: StateType, known_since: float | None
) -> None:
    mirrored_at = None if known_since is None else at(known_since)
    silent = run(45, mirrored_at)
    assert decided(silent, state_of(state_type, age)) is expected


@pytest.mark.parametrize(
    ("later_ms", "expected"), [(-1, END), (0, END), (0.999, END), (1, LET_BE), (50, LET_BE)]
)
def test_a_state_is_that_on_record_if_it_is_so_to_the_millisecond(
    later_ms: float, expected: Verdict
) -> None:
    silent = run(45, at(-10))
    state = state_of(StateType.RUNNING, 10 - later_ms / 1000)
    assert decided(silent, state) is expected


@pytest.mark.parametrize("years", [-40, 0, 40])
def test_only_prefects_clock_and_that_of_mongodb_count(years: int) -> None:
    """All times are far from those of this machine."""
    shift = timedelta(days=365 * years)
    for age, expected in ((299.9, LET_BE), (300, END)):
        state = State[Any](type=StateType.RUNNING, timestamp=at(-age) + shift)
        assert verdict(NOT_SPOKEN, state, at(0) + shift) is expected
