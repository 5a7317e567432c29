"""Figures: the sum of all runs, by entity type and by status."""

from typing import Any

import pytest
from pymongo import MongoClient
from pymongo.collection import Collection
from pymongo.database import Database

from tasks.mongo_errors import MongoUnavailable
from tasks.trail.figures import Figures
from tasks.trail.run_sums import EntityFigures, RunSums
from tasks.trail.runs import Runs
from tasks.trail.stages import RequestTimes, RunStatus
from tests.trail_documents import OPTIONS, at

Document = dict[str, Any]


@pytest.fixture
def figures(database: Database[Document]) -> Figures:
    return Figures(database)


def add_run(sync_runs: Collection[Document], *stages: Document, **fields: Any) -> None:
    document = {"flow_run_id": str(sync_runs.count_documents({})), "status": "success", **fields}
    sync_runs.insert_one({**document, "stages": list(stages)})


def test_stages_of_all_runs_add_up_by_entity_type(
    figures: Figures, sync_runs: Collection[Document]
) -> None:
    requests = {"count": 3, "seconds": 0.5, "buckets": {"5": 2, "inf": 1}}
    tenants = {"entity_type": "tenant", "total": 4, "success": 2, "failed": 1, "skipped": 1}
    add_run(
        sync_runs,
        {**tenants, "status": "partial", "finished_at": at(9), "requests": requests},
        {"entity_type": "client", "skipped": 1, "status": "failed", "finished_at": at(9)},
    )
    add_run(
        sync_runs,
        {**tenants, "unchanged": 1, "status": "success", "finished_at": at(5)},
    )
    add_run(
        sync_runs,
        {**tenants, "status": "success", "finished_at": at(3), "requests": requests},
    )
    add_run(sync_runs, {**tenants, "status": "success", "finished_at": at(99)}, dry_run=True)
    add_run(sync_runs, {**tenants, "status": "running", "finished_at": None}, status="running")
    assert figures.sum().by_entity_type == {
        "tenant": EntityFigures(
            {"success": 6, "failed": 3, "skipped": 2, "unchanged": 1},
            RequestTimes(6, 1.0, {"5": 4, "inf": 2}),
            at(5),
        ),
        "client": EntityFigures({"success": 0, "failed": 0, "skipped": 1, "unchanged": 0}),
    }


def test_what_a_retry_has_brought_in_has_failed_all_the_same(
    figures: Figures, sync_runs: Collection[Document]
) -> None:
    counts = {"success": 4, "failed": 0, "skipped": 3, "unchanged": 3}
    retried = {"entity_type": "tenant", "finished_at": at(9), **counts}
    most = {"most_success": 4, "most_failed": 3, "most_skipped": 1, "most_unchanged": 3}
    add_run(sync_runs, {**retried, **most})
    add_run(sync_runs, {**retried, "skipped": 5})
    assert figures.sum().by_entity_type["tenant"].items == {
        "success": 8,
        "failed": 3,
        "skipped": 3,
        "unchanged": 6,
    }


def test_an_empty_trail_has_no_figures(figures: Figures) -> None:
    assert figures.sum() == RunSums({}, {})


def test_runs_are_counted_by_status_dry_ones_too(
    figures: Figures, runs: Runs, sync_runs: Collection[Document]
) -> None:
    runs.open("f", "n", OPTIONS)
    for dry_run in (True, False):
        add_run(sync_runs, status="crashed", dry_run=dry_run)
    assert figures.sum().by_status == {RunStatus.PENDING: 1, RunStatus.CRASHED: 2}


def test_what_is_no_run_of_ours_counts_for_nothing(
    figures: Figures, sync_runs: Collection[Document]
) -> None:
    sync_runs.insert_many([{"flow_run_id": 1, "a": 1}, {"flow_run_id": 2, "stages": [{}]}])
    assert figures.sum() == RunSums({}, {})


def test_what_running_stages_are_held_to_and_the_slowest_counts(
    figures: Figures, sync_runs: Collection[Document]
) -> None:
    running = {"status": "running"}
    paced = {"entity_type": "tenant", "pace": 18.5, **running}
    waiting = {"entity_type": "client", "pace": 0.0, **running}
    free = {"entity_type": "domain", "pace": None, **running}
    add_run(sync_runs, paced, waiting, free, **running)
    add_run(sync_runs, {**paced, "pace": 20.0}, **running)
    add_run(sync_runs, {**paced, "pace": 1.0}, status="crashed")
    add_run(sync_runs, {**paced, "pace": 2.0, "status": "success"}, **running)
    assert figures.paces() == {"tenant": 18.5, "client": 0.0}


def test_the_stages_of_running_runs_are_told(
    figures: Figures, sync_runs: Collection[Document]
) -> None:
    stage = {"entity_type": "tenant", "status": "success", "total": 3, "success": 2, "skipped": 1}
    add_run(sync_runs, stage, {"entity_type": "client", "total": 9}, status="running")
    add_run(sync_runs, stage, status="pending")
    add_run(sync_runs, stage)
    add_run(sync_runs, {"another": "shape"}, status="running")
    told = figures.running_stages()
    assert [(each.entity_type, each.total, each.done) for each in told] == [
        ("tenant", 3, 3),
        ("client", 9, 0),
    ]


def test_the_last_run_of_each_mode_that_has_come_to_its_end_has_a_duration(
    figures: Figures, sync_runs: Collection[Document]
) -> None:
    full = {"mode": "full", "started_at": at(0), "finished_at": at(10)}
    changed = {**full, "mode": "changed"}
    add_run(sync_runs, **full)
    add_run(sync_runs, **{**full, "started_at": at(5), "finished_at": at(8)}, status="partial")
    add_run(sync_runs, **{**changed, "started_at": at(2), "finished_at": at(3.5)}, status="failed")
    for other in (
        {"status": "cancelled"},
        {"status": "crashed"},
        {"status": "running", "finished_at": None},
        {"dry_run": True},
        {"finished_at": None},
        {"mode": None},
    ):
        add_run(sync_runs, **{**full, "started_at": at(9), **other})
    assert figures.last_durations() == {"full": 3.0, "changed": 1.5}


def test_a_mode_that_has_not_run_for_long_has_no_duration(
    figures: Figures, sync_runs: Collection[Document], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tasks.trail.figures._NEWEST_RUNS", 2)
    for number, mode in enumerate(["full", "changed", "changed"]):
        add_run(sync_runs, mode=mode, started_at=at(number), finished_at=at(9))
    assert figures.last_durations() == {"changed": 7.0}


@pytest.mark.parametrize("method", ["sum", "paces", "running_stages", "last_durations"])
def test_figures_do_not_wait_for_a_mongodb_that_is_away(method: str) -> None:
    with (
        MongoClient[Document](
            "mongodb://127.0.0.1:9", connect=False, serverSelectionTimeoutMS=10
        ) as client,
        pytest.raises(MongoUnavailable),
    ):
        getattr(Figures(client["backoffice"]), method)()
