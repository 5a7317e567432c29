"""Stops: the reason why an attempt sends nothing more, as each of its processes gets to know it."""

from typing import Any

import pytest
from bson import ObjectId
from pymongo.collection import Collection

from tasks.errors import (
    HUB_UNAVAILABLE,
    RUN_ENDED,
    RUN_SUSPENDED,
    RUN_TAKEN_OVER,
    LeaveReason,
    StopReason,
)
from tasks.mongo import MongoRetry
from tasks.trail.fields import RunAttempt, RunId
from tasks.trail.ownership import Ownership
from tasks.trail.runs import Runs
from tasks.trail.stages import RunStatus, Stages
from tasks.trail.stops import Stops
from tests.trail_documents import HUB, at, begin

DOWN = StopReason("its endpoint is down", HUB_UNAVAILABLE)
LATER = StopReason("a later reason")


@pytest.fixture
def stops(sync_runs: Collection[dict[str, Any]], retry: MongoRetry) -> Stops:
    return Stops(sync_runs, retry)


def test_the_first_reason_stays_until_the_run_begins_anew(
    ownership: Ownership, stops: Stops, run_id: RunId
) -> None:
    attempt = begin(ownership, run_id)
    assert stops.reason(attempt) is None
    stops.stop(attempt, DOWN)
    stops.stop(attempt, LATER)
    assert stops.reason(attempt) == DOWN
    assert stops.reason(begin(ownership, run_id, since=1)) is None


def test_a_stage_is_stopped_until_it_begins_anew(
    ownership: Ownership, stops: Stops, stages: Stages, run_id: RunId
) -> None:
    attempt = begin(ownership, run_id)
    stages.begin(attempt, "tenant", HUB, at(0))
    stops.stop_stage(attempt, "tenant", DOWN)
    stops.stop_stage(attempt, "tenant", LATER)
    assert stops.reason(attempt, "tenant") == DOWN
    assert stops.reason(attempt, "client") is stops.reason(attempt) is None
    whole = StopReason("somebody stopped it")
    stops.stop(attempt, whole)
    assert stops.reason(attempt, "tenant") == whole
    following = begin(ownership, run_id, since=1)
    stages.begin(following, "tenant", HUB, at(1))
    assert stops.reason(following, "tenant") is None


def test_an_attempt_that_another_follows_sends_nothing_more(
    ownership: Ownership, stops: Stops, run_id: RunId
) -> None:
    earlier, later = begin(ownership, run_id), begin(ownership, run_id)
    assert stops.reason(earlier) == stops.reason(earlier, "tenant") == RUN_TAKEN_OVER
    assert stops.reason(later) is None


def test_a_run_that_nobody_knows_any_more_sends_nothing_more(stops: Stops) -> None:
    reason = stops.reason(RunAttempt(ObjectId(), 1))
    assert reason == StopReason("its document in sync_runs is gone")
    assert not isinstance(reason, LeaveReason), "its process ends it"


def test_an_earlier_attempt_stops_nothing(
    ownership: Ownership,
    stops: Stops,
    stages: Stages,
    sync_runs: Collection[dict[str, Any]],
    run_id: RunId,
) -> None:
    earlier, later = begin(ownership, run_id), begin(ownership, run_id)
    stages.begin(later, "tenant", HUB, at(0))
    before = list(sync_runs.find())
    stops.stop(earlier, DOWN)
    stops.stop_stage(earlier, "tenant", DOWN)
    assert list(sync_runs.find()) == before
    assert stops.reason(later) is stops.reason(later, "tenant") is None


@pytest.mark.parametrize("status", [status for status in RunStatus if status.is_terminal])
def test_a_run_that_has_ended_sends_nothing_more(
    runs: Runs, ownership: Ownership, stops: Stops, run_id: RunId, status: RunStatus
) -> None:
    attempt = begin(ownership, run_id)
    stops.stop(attempt, DOWN)
    run = runs.find(run_id)
    assert run is not None
    runs.end(run, status, "", at(0), run.stages, [])
    assert stops.reason(attempt) == stops.reason(attempt, "tenant") == RUN_ENDED


@pytest.mark.parametrize(("is_stopped", "expected"), [(False, RUN_SUSPENDED), (True, DOWN)])
def test_a_run_that_is_suspended_sends_nothing_more(
    ownership: Ownership,
    stops: Stops,
    run_id: RunId,
    is_stopped: bool,
    expected: StopReason,
) -> None:
    attempt = begin(ownership, run_id)
    if is_stopped:
        stops.stop(attempt, DOWN)
    ownership.suspend(run_id, "", at(1))
    assert stops.reason(attempt) == expected
    assert stops.reason(begin(ownership, run_id, since=2)) is None
