"""Requests of a stage add up in MongoDB, whichever process has sent them."""

from typing import Any

import pytest
from pymongo.database import Database

from tasks.mongo import MongoRetry
from tasks.trail.fields import RunId
from tasks.trail.ownership import Ownership
from tasks.trail.stages import RequestTimes, Stages
from tests.trail_documents import begin


@pytest.fixture
def stages(database: Database[dict[str, Any]], retry: MongoRetry) -> Stages:
    return Stages(database.sync_runs, retry)


def test_requests_are_added_to_those_of_the_stage(
    database: Database[dict[str, Any]], ownership: Ownership, stages: Stages, run_id: RunId
) -> None:
    attempt = begin(ownership, run_id)
    for durations_ms in ([3, 4, 400], [], [4, 20_000]):
        stages.count_requests(attempt, "client", RequestTimes.of(durations_ms))
    (document,) = database.sync_runs.find()
    tenants, clients = document["stages"]
    assert clients["requests"] == {
        "count": 5,
        "seconds": 20.411,
        "buckets": {"5": 3, "500": 1, "inf": 1},
    }
    assert "requests" not in tenants


def test_requests_of_all_attempts_add_up_but_not_what_an_earlier_one_sends_later(
    database: Database[dict[str, Any]], ownership: Ownership, stages: Stages, run_id: RunId
) -> None:
    earlier = begin(ownership, run_id)
    stages.count_requests(earlier, "tenant", RequestTimes.of([3]))
    later = begin(ownership, run_id)
    stages.count_requests(later, "tenant", RequestTimes.of([4]))
    stages.count_requests(earlier, "tenant", RequestTimes.of([5]))
    (document,) = database.sync_runs.find()
    assert document["stages"][0]["requests"]["count"] == 2
