"""Requests of a stage add up in MongoDB, whichever process has sent them."""

from typing import Any

from pymongo.database import Database

from tasks.mongo import MongoRetry
from tasks.trail.fields import RunId
from tasks.trail.stages import RequestTimes, Stages


def test_requests_are_added_to_those_of_the_stage(
    database: Database[dict[str, Any]], retry: MongoRetry, run_id: RunId
) -> None:
    stages = Stages(database.sync_runs, retry)
    for durations_ms in ([3, 4, 400], [], [4, 20_000]):
        stages.count_requests(run_id, "client", RequestTimes.of(durations_ms))
    (document,) = database.sync_runs.find()
    tenants, clients = document["stages"]
    assert clients["requests"] == {
        "count": 5,
        "seconds": 20.411,
        "buckets": {"5": 3, "500": 1, "inf": 1},
    }
    assert "requests" not in tenants
