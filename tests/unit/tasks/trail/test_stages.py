"""Stages: what they count, how counts add up, and what of them stands in `sync_runs`."""

import logging
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pymongo import MongoClient
from pymongo.collection import Collection

from tasks.mongo import MongoRetry
from tasks.trail.fields import RunAttempt, RunId
from tasks.trail.ownership import Ownership
from tasks.trail.stages import (
    OUTCOMES,
    REQUEST_BOUNDS_MS,
    REQUEST_BUCKETS,
    RequestTimes,
    RunStatus,
    StageRecord,
    Stages,
    StageTotals,
    Tally,
)
from tests.trail_documents import HUB, RUN, at, begin

SUCCESS, PARTIAL, FAILED = RunStatus.SUCCESS, RunStatus.PARTIAL, RunStatus.FAILED
counts = st.integers(0, 1_000_000)
totals = st.builds(
    StageTotals,
    total=counts,
    success=counts,
    failed=counts,
    skipped=counts,
    unchanged=counts,
    superseded=counts,
    would_send=counts,
    gone=counts,
    first=st.none() | st.text(min_size=1),
)


def test_only_pending_and_running_are_not_terminal() -> None:
    going_on = {status for status in RunStatus if not status.is_terminal}
    assert going_on == {RunStatus.PENDING, RunStatus.RUNNING}


@pytest.mark.parametrize(
    ("totals", "outcome"),
    [
        (StageTotals(), SUCCESS),
        (StageTotals(total=2, success=2), SUCCESS),
        (StageTotals(total=2, success=1, skipped=1, unchanged=1), SUCCESS),
        (StageTotals(total=2, skipped=2, unchanged=2), SUCCESS),
        (StageTotals(total=2, success=1, failed=1), PARTIAL),
        (StageTotals(total=2, success=1, skipped=1), PARTIAL),
        (StageTotals(total=2, failed=1, skipped=1, unchanged=1), PARTIAL),
        (StageTotals(total=2, failed=1, skipped=1), FAILED),
        (StageTotals(total=2, skipped=2, would_send=2), FAILED),
        (StageTotals(total=2, success=1, skipped=1, superseded=1), SUCCESS),
        (StageTotals(total=3, success=1, failed=1, skipped=1, superseded=1), PARTIAL),
        (StageTotals(total=2, failed=1, skipped=1, superseded=1), FAILED),
        (StageTotals(total=1, success=1, gone=3), SUCCESS),
    ],
)
def test_outcome_of_the_counts_alone(totals: StageTotals, outcome: RunStatus) -> None:
    assert totals.outcome is outcome


@settings(max_examples=40)
@given(totals, totals, totals)
def test_totals_add_up_field_by_field(
    one: StageTotals, two: StageTotals, three: StageTotals
) -> None:
    together = one + two
    for name in set(StageTotals.model_fields) - {"first"}:
        assert getattr(together, name) == getattr(one, name) + getattr(two, name)
    assert together.first == (one.first or two.first)
    assert one + StageTotals() == StageTotals() + one == one
    assert (one + two) + three == one + (two + three)


def test_items_that_are_left_alone_have_no_step_and_so_have_those_that_are_gone() -> None:
    counted = StageTotals(
        success=4, skipped=9, unchanged=2, superseded=4, would_send=3, first="acme", gone=5
    )
    assert counted.left_alone == StageTotals(total=2, skipped=2, unchanged=2, first="acme", gone=5)


def test_documents_that_are_superseded_are_not_wanted() -> None:
    counted = StageTotals(total=9, success=4, failed=3, skipped=2, superseded=2, gone=5)
    assert (counted.wanted, counted.items_in) == (7, 4)


@given(totals)
def test_each_item_has_one_outcome(counted: StageTotals) -> None:
    outcomes = counted.by_outcome
    assert tuple(outcomes) == OUTCOMES
    assert sum(outcomes.values()) == counted.success + counted.failed + counted.skipped


def test_tallies_add_up_code_by_code() -> None:
    one = Tally(StageTotals(total=3, failed=3), {"NOT_FOUND": 1, "TIMEOUT": 2})
    two = Tally(StageTotals(total=2, success=1, failed=1), {"TIMEOUT": 1})
    assert one + two == Tally(
        StageTotals(total=5, success=1, failed=4), {"NOT_FOUND": 1, "TIMEOUT": 3}
    )


@pytest.mark.parametrize(
    ("duration_ms", "bucket"),
    [(0, "5"), (5, "5"), (5.001, "10"), (1_000, "1000"), (10_000, "10000"), (10_000.1, "inf")],
)
def test_a_request_is_in_the_first_bucket_that_holds_it(duration_ms: float, bucket: str) -> None:
    times = RequestTimes.of([duration_ms])
    assert times.buckets == {bucket: 1}
    assert times.seconds == duration_ms / 1000


@given(st.lists(st.floats(0, 1e6)))
def test_each_request_is_in_one_bucket(durations_ms: list[float]) -> None:
    times = RequestTimes.of(durations_ms)
    assert times.count == sum(times.buckets.values()) == len(durations_ms)
    for index, bound in enumerate(REQUEST_BOUNDS_MS):
        assert sum(times.buckets.get(name, 0) for name in REQUEST_BUCKETS[: index + 1]) == sum(
            each <= bound for each in durations_ms
        )


def test_times_of_requests_add_up() -> None:
    together = RequestTimes.of([4, 300]) + RequestTimes.of([3, 20_000])
    assert together == RequestTimes.of([4, 300, 3, 20_000])


def test_a_stage_that_ends_keeps_its_counts() -> None:
    stage = StageRecord(
        entity_type="tenant", status=RunStatus.RUNNING, started_at=at(1), skipped=3, unchanged=3
    )
    ended = stage.ended(RunStatus.CRASHED, at(3.5))
    assert (stage.is_open, stage.seconds) == (True, None)
    assert (ended.is_open, ended.seconds) == (False, 2.5)
    assert (ended.status, ended.unchanged) == (RunStatus.CRASHED, 3)
    assert ended.left_alone == StageTotals(total=3, skipped=3, unchanged=3)


def test_one_stage_begins_is_told_how_many_items_it_has_and_ends(
    stages: Stages, ownership: Ownership, sync_runs: Collection[dict[str, Any]], run_id: RunId
) -> None:
    def of_document() -> list[dict[str, Any]]:
        (document,) = sync_runs.find({"_id": run_id})
        found: list[dict[str, Any]] = document["stages"]
        return found

    attempt = begin(ownership, run_id)
    tenant, client = of_document()
    stages.begin(attempt, "client", HUB, at(1))
    stages.expect(attempt, "client", 7)
    client |= {"status": "running", "started_at": at(1), "finished_at": None, "total": 7}
    client |= {"hub": HUB, "pace": None, "stopped_because": None}
    assert of_document() == [tenant, client]
    stages.note_pace(attempt, "client", 18.5)
    assert of_document()[1]["pace"] == 18.5
    stages.end(attempt, "client", PARTIAL, StageTotals(total=9, success=5, failed=4), at(4))
    client |= {"status": "partial", "finished_at": at(4), "total": 9, "success": 5, "failed": 4}
    client |= {"most_success": 5, "most_failed": 4, "most_skipped": 0, "most_unchanged": 0}
    assert of_document() == [tenant, client]
    stages.begin(attempt, "client", HUB, at(5))
    assert of_document()[1]["finished_at"] is None


def test_counts_are_live_while_a_stage_goes_on_and_its_run_is_their_sum(
    stages: Stages, ownership: Ownership, sync_runs: Collection[dict[str, Any]], run_id: RunId
) -> None:
    def told() -> tuple[dict[str, int], dict[str, int]]:
        (document,) = sync_runs.find({"_id": run_id})
        counts = ("total", "success", "failed", "skipped", "retrying", "unchanged")
        return {name: document["stages"][1][name] for name in counts}, document["totals"]

    attempt = begin(ownership, run_id)
    stages.begin(attempt, "tenant", HUB, at(1))
    stages.end(attempt, "tenant", PARTIAL, StageTotals(total=2, success=1, failed=1), at(2))
    stages.begin(attempt, "client", HUB, at(3), 3)
    stages.expect(attempt, "client", 9)
    assert stages.count(attempt, "client", {"success": 1, "retrying": 2, "failed": 0})
    assert stages.count(attempt, "client", {"failed": 1, "retrying": -1})
    assert stages.count(attempt, "client", {"skipped": 3, "unchanged": 3, "total": 1})
    of_stage, of_run = told()
    counts = {"total": 10, "success": 4, "failed": 1, "skipped": 3}
    assert of_stage == {**counts, "retrying": 1, "unchanged": 3}
    assert of_run == {"total": 12, "success": 5, "failed": 2, "skipped": 3}
    stages.end(attempt, "client", PARTIAL, StageTotals(total=9, success=7, failed=2), at(4))
    assert stages.count(attempt, "client", {"success": 1}), "what comes late is no failure"
    of_stage, of_run = told()
    counts = {"total": 9, "success": 7, "failed": 2, "skipped": 0}
    assert of_stage == {**counts, "retrying": 0, "unchanged": 0}
    assert of_run == {"total": 11, "success": 8, "failed": 3, "skipped": 0}


def test_a_stage_remembers_the_most_that_each_outcome_has_come_to(
    stages: Stages, ownership: Ownership, sync_runs: Collection[dict[str, Any]], run_id: RunId
) -> None:
    attempt = begin(ownership, run_id)
    for totals in (
        StageTotals(total=9, success=2, failed=3, skipped=4, unchanged=1),
        StageTotals(total=9, success=5, skipped=4, unchanged=4),
    ):
        stages.end(attempt, "tenant", PARTIAL, totals, at(4))
    (document,) = sync_runs.find()
    stage = document["stages"][0]
    assert {name: stage[name] for name in OUTCOMES} == {
        "success": 5,
        "failed": 0,
        "skipped": 4,
        "unchanged": 4,
    }
    assert {name: stage[f"most_{name}"] for name in OUTCOMES} == {
        "success": 5,
        "failed": 3,
        "skipped": 3,
        "unchanged": 4,
    }


def test_an_earlier_attempt_changes_no_stage(
    stages: Stages, ownership: Ownership, sync_runs: Collection[dict[str, Any]], run_id: RunId
) -> None:
    earlier = begin(ownership, run_id)
    stages.begin(earlier, "tenant", HUB, at(1))
    stages.begin(begin(ownership, run_id), "tenant", HUB, at(2))
    before = list(sync_runs.find())
    stages.begin(earlier, "client", HUB, at(3))
    stages.begin(earlier, "tenant", HUB, at(3))
    stages.expect(earlier, "tenant", 7)
    stages.count(earlier, "tenant", {"success": 1})
    stages.note_pace(earlier, "tenant", 18.5)
    stages.end(earlier, "tenant", PARTIAL, StageTotals(total=9, success=5, failed=4), at(4))
    assert list(sync_runs.find()) == before


def test_requests_that_can_not_be_counted_are_told_and_fail_nothing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    uri, attempt = "mongodb://user:marked@127.0.0.1:9", RunAttempt(RUN, 1)
    with (
        MongoClient[dict[str, Any]](uri, connect=False, serverSelectionTimeoutMS=10) as client,
        caplog.at_level(logging.WARNING),
    ):
        stages = Stages(client["backoffice"]["sync_runs"], MongoRetry(client, seconds=0))
        stages.count_requests(attempt, "tenant", RequestTimes.of([]))
        assert caplog.messages == []
        stages.count_requests(attempt, "tenant", RequestTimes.of([1, 2]))
    assert caplog.messages == ["A measure is missing in the metrics: ServerSelectionTimeoutError"]
