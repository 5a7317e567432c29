"""Liveness goes by MongoDB's clock: how long ago the process of a run was last heard of."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from pymongo.database import Database

from tasks.mongo import MongoRetry
from tasks.trail.fields import RunId
from tasks.trail.liveness import Liveness
from tasks.trail.runs import Runs
from tasks.trail.stages import UNFINISHED, RunStatus
from tests.trail_documents import OPTIONS

SILENT = 3_600


@pytest.fixture
def liveness(database: Database[dict[str, Any]], retry: MongoRetry) -> Liveness:
    return Liveness(database.sync_runs, retry)


def began_long_ago(database: Database[dict[str, Any]], run_id: RunId) -> None:
    an_hour_ago = datetime.now(UTC) - timedelta(seconds=SILENT)
    database.sync_runs.update_one({"_id": run_id}, {"$set": {"started_at": an_hour_ago}})


def silent_seconds(liveness: Liveness) -> float:
    (run,) = liveness.unfinished()
    return run.silent_seconds


def test_a_run_was_last_heard_of_when_it_began_or_showed_itself_since(
    database: Database[dict[str, Any]], runs: Runs, liveness: Liveness, run_id: RunId
) -> None:
    began_long_ago(database, run_id)
    assert silent_seconds(liveness) == pytest.approx(SILENT, abs=30)
    attempt = runs.begin_attempt(run_id)
    assert silent_seconds(liveness) < 30
    database.sync_runs.update_one({}, {"$unset": {"alive_at": True}})
    liveness.show(attempt)
    assert silent_seconds(liveness) < 30


def test_an_attempt_that_another_has_followed_shows_nothing(
    database: Database[dict[str, Any]], runs: Runs, liveness: Liveness, run_id: RunId
) -> None:
    earlier = runs.begin_attempt(run_id)
    runs.begin_attempt(run_id)
    began_long_ago(database, run_id)
    database.sync_runs.update_one({}, {"$unset": {"alive_at": True}})
    liveness.show(earlier)
    assert silent_seconds(liveness) > SILENT - 30


def test_runs_without_a_terminal_status_are_unfinished_oldest_first(
    database: Database[dict[str, Any]], runs: Runs, liveness: Liveness
) -> None:
    opened = {status: runs.open(f"{status}", "a run", OPTIONS) for status in RunStatus}
    for status, run_id in opened.items():
        database.sync_runs.update_one({"_id": run_id}, {"$set": {"status": status}})
    began_long_ago(database, opened[RunStatus.RUNNING])
    found = [(run.run_id, run.flow_run_id) for run in liveness.unfinished()]
    assert found == [(opened[status], f"{status}") for status in reversed(UNFINISHED)]
