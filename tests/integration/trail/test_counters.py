"""What Prometheus scrapes of a run that is retried: no counter falls."""

from typing import Any

from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families
from pymongo.database import Database

from deployments.api.metrics import SyncMetrics
from tasks.mongo import MongoRetry
from tasks.trail.audit_trail import AuditTrail, trail_of
from tasks.trail.fields import RunAttempt, RunId
from tasks.trail.figures import Figures
from tasks.trail.item_history import ItemHistory
from tasks.trail.stages import RequestTimes, RunStatus
from tasks.trail.step_buffer import StepBuffer
from tests.trail_documents import HUB, PERMANENT, at, begin, left_alone, live_counts, new_step

Document = dict[str, Any]
Samples = dict[tuple[str, ...], float]


def trail_in(database: Database[Document], retry: MongoRetry) -> AuditTrail:
    collections = database.sync_runs, database.sync_steps, database.sync_items
    live = live_counts(database, retry)
    buffer = StepBuffer(database.sync_steps, database.sync_items, live, retry)
    return trail_of(*collections, buffer, retry)


def scraped(database: Database[Document], retry: MongoRetry) -> Samples:
    metrics = SyncMetrics(Figures(database), ItemHistory(database, retry))
    families = text_string_to_metric_families(generate_latest(metrics).decode())
    return {
        (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in families
        for sample in family.samples
        if family.type in ("counter", "histogram")
    }


def stage_that_goes_on(trail: AuditTrail, run_id: RunId, failed: int, since: float) -> RunAttempt:
    """Send ten tenants, of which so many are not in."""
    attempt = begin(trail.ownership, run_id, since=since)
    trail.stages.begin(attempt, "tenant", HUB, at(since))
    trail.stages.count_requests(attempt, "tenant", RequestTimes.of([5.0] * 10))
    for number in range(10):
        error = PERMANENT if number < failed else None
        trail.buffer.record(new_step(run_id, number, error=error, run_attempt=attempt.number))
    trail.buffer.flush()
    trail.live.write()
    return attempt


def attempt_that_fails(trail: AuditTrail, run_id: RunId, failed: int, since: float) -> None:
    """Send ten tenants, of which so many are not in, and end."""
    attempt = stage_that_goes_on(trail, run_id, failed, since)
    tally = trail.counting.tally(run_id, "tenant", left_alone(2))
    status = RunStatus.PARTIAL if failed else RunStatus.SUCCESS
    trail.stages.end(attempt, "tenant", status, tally.totals, at(since + 1))
    trail.counting.end_run(run_id, status, "", at(since + 2))


def test_no_counter_falls_when_a_retry_brings_in_what_has_failed(
    database: Database[Document], retry: MongoRetry, run_id: RunId
) -> None:
    trail = trail_in(database, retry)
    attempt_that_fails(trail, run_id, failed=3, since=10)
    before = scraped(database, retry)
    assert before["admin_sync_items_total", "tenant", "failed"] == 3

    attempt_that_fails(trail, run_id, failed=0, since=20)
    after = scraped(database, retry)
    assert after["admin_sync_items_total", "tenant", "failed"] == 3
    assert after["admin_sync_items_total", "tenant", "success"] == 10
    assert after["admin_sync_items_total", "tenant", "unchanged"] == 2
    assert after["admin_sync_items_total", "tenant", "skipped"] == 0
    assert not [name for name in before if after[name] < before[name]]


def test_counts_that_are_live_may_fall_and_are_not_in_yet(
    database: Database[Document], retry: MongoRetry, run_id: RunId
) -> None:
    stage_that_goes_on(trail_in(database, retry), run_id, failed=3, since=10)
    (run,) = database.sync_runs.find()
    assert run["stages"][0]["success"] == 7
    told = scraped(database, retry)
    assert told["admin_sync_items_total", "tenant", "success"] == 0
    assert told["admin_sync_items_total", "tenant", "failed"] == 0


def test_what_a_late_process_makes_of_an_ended_run_is_counted(
    database: Database[Document], retry: MongoRetry, run_id: RunId
) -> None:
    trail = trail_in(database, retry)
    attempt_that_fails(trail, run_id, failed=3, since=10)
    steps = {"run_id": run_id, "source_id": 0}
    database.sync_steps.update_one(steps, {"$set": {"error.class": "skipped"}})
    trail.counting.recount(run_id, "tenant")
    told = scraped(database, retry)
    assert told["admin_sync_items_total", "tenant", "failed"] == 3
    assert told["admin_sync_items_total", "tenant", "skipped"] == 1
