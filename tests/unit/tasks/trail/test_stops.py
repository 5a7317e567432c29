"""Stops: the reason why a run sends nothing more, as each of its processes gets to know it."""

from typing import Any

import pytest
from bson import ObjectId
from pymongo.collection import Collection

from tasks.errors import HUB_UNAVAILABLE, RUN_CANCELLED, StopReason
from tasks.mongo import MongoRetry
from tasks.trail.fields import RunId
from tasks.trail.runs import RunAttempt, Runs
from tasks.trail.stages import RunStatus, Stages
from tasks.trail.stops import Stops
from tests.trail_documents import HUB, at


@pytest.fixture
def stops(sync_runs: Collection[dict[str, Any]], retry: MongoRetry) -> Stops:
    return Stops(sync_runs, retry)


def test_the_first_reason_stays_until_the_run_runs_again(
    runs: Runs, stops: Stops, run_id: RunId
) -> None:
    attempt = runs.begin_attempt(run_id)
    assert stops.reason(attempt) is None
    down = StopReason("Stage 1 is down", HUB_UNAVAILABLE)
    stops.stop(run_id, down)
    stops.stop(run_id, StopReason("a later reason"))
    assert stops.reason(attempt) == down
    runs.mirror(run_id, RunStatus.RUNNING, "", at(0))
    assert stops.reason(attempt) is None


def test_a_stage_is_stopped_until_it_begins_anew(
    runs: Runs, stops: Stops, stages: Stages, run_id: RunId
) -> None:
    attempt = runs.begin_attempt(run_id)
    stages.begin(run_id, "tenant", HUB, at(0))
    down = StopReason("its endpoint is down", HUB_UNAVAILABLE)
    stops.stop_stage(run_id, "tenant", down)
    stops.stop_stage(run_id, "tenant", StopReason("a later reason"))
    assert stops.reason(attempt, "tenant") == down
    assert stops.reason(attempt, "client") is stops.reason(attempt) is None
    whole = StopReason("somebody stopped it")
    stops.stop(run_id, whole)
    assert stops.reason(attempt, "tenant") == whole
    runs.mirror(run_id, RunStatus.RUNNING, "", at(1))
    stages.begin(run_id, "tenant", HUB, at(1))
    assert stops.reason(attempt, "tenant") is None


def test_an_attempt_that_another_follows_sends_nothing_more(
    runs: Runs, stops: Stops, run_id: RunId
) -> None:
    earlier, later = runs.begin_attempt(run_id), runs.begin_attempt(run_id)
    superseded = StopReason("the run has begun anew elsewhere")
    assert stops.reason(earlier) == superseded
    assert stops.reason(later) is None
    assert stops.reason(RunAttempt(ObjectId(), 1)) == superseded


@pytest.mark.parametrize("status", RunStatus)
def test_a_run_that_has_ended_sends_nothing_more(
    runs: Runs, stops: Stops, run_id: RunId, status: RunStatus
) -> None:
    attempt = runs.begin_attempt(run_id)
    runs.mirror(run_id, status, "", at(0))
    ended = RUN_CANCELLED if status is RunStatus.CANCELLED else StopReason("the run has ended")
    assert stops.reason(attempt) == (ended if status.is_terminal else None)
