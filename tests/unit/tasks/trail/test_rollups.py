"""Rollups: whatever becomes of runs, the sum of all is that of each."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from bson import ObjectId
from pymongo.collection import Collection
from pymongo.database import Database

from tasks.trail.rollups import Rollups
from tasks.trail.run_sums import EntityFigures, RunSums, sum_of_runs
from tasks.trail.runs import Runs
from tasks.trail.stages import RunStatus
from tests.trail_documents import at

Document = dict[str, Any]


@pytest.fixture
def sync_rollups(
    database: Database[Document], monkeypatch: pytest.MonkeyPatch
) -> Collection[Document]:
    """Rollups of two runs each; at most three have none."""
    monkeypatch.setattr("tasks.trail.rollups.RUNS_A_ROLLUP", 2)
    monkeypatch.setattr("tasks.trail.rollups.RUNS_WITHOUT", 3)
    return database.sync_rollups


@pytest.fixture
def rollups(sync_runs: Collection[Document], sync_rollups: Collection[Document]) -> Rollups:
    return Rollups(sync_runs, sync_rollups)


def key(number: int) -> ObjectId:
    return ObjectId(f"{number:024x}")


def run_numbered(number: int, **fields: Any) -> Document:
    requests = {"count": number, "seconds": 0.5, "buckets": {"5": number}}
    tenants: Document = {"entity_type": "tenant", "success": number, "failed": 1, "skipped": 3}
    most = {"most_success": number, "most_failed": 1, "most_skipped": 2, "most_unchanged": 1}
    tenants |= most if number % 2 else {}  # older versions lack them
    return {
        "_id": key(number),
        "flow_run_id": str(number),
        "flow_run_name": "a run",
        "started_at": at(number),
        "mode": "full",
        "trigger": "a test",
        "attempt": 1,
        "status": "success" if number % 3 else "crashed",
        "stages": [
            {**tenants, "unchanged": 1, "requests": requests, "status": "failed"},
            {"entity_type": f"type {number % 4}", "status": "success", "finished_at": at(number)},
        ],
        **fields,
    }


def add(sync_runs: Collection[Document], *numbers: int, **fields: Any) -> None:
    sync_runs.insert_many([run_numbered(number, **fields) for number in numbers])


def ranges(sync_rollups: Collection[Document]) -> list[tuple[int, int]]:
    return [(int(str(r["_id"]), 16), int(str(r["last"]), 16)) for r in sync_rollups.find()]


def direct(sync_runs: Collection[Document]) -> RunSums:
    return sum_of_runs(sync_runs, {})


def assert_nothing_is_lost(rollups: Rollups, sync_runs: Collection[Document]) -> None:
    for _ in range(2):
        told = rollups.sum()
        assert told.by_entity_type == direct(sync_runs).by_entity_type
        assert told.by_status == direct(sync_runs).by_status


def test_few_runs_need_no_rollup(
    rollups: Rollups, sync_runs: Collection[Document], sync_rollups: Collection[Document]
) -> None:
    add(sync_runs, 1, 2, 3)
    assert_nothing_is_lost(rollups, sync_runs)
    assert ranges(sync_rollups) == []


def test_an_old_trail_is_rolled_up_once_but_for_the_newest_runs(
    rollups: Rollups, sync_runs: Collection[Document], sync_rollups: Collection[Document]
) -> None:
    add(sync_runs, *range(1, 9), dry_run=False)
    add(sync_runs, 9, dry_run=True)
    assert_nothing_is_lost(rollups, sync_runs)
    assert ranges(sync_rollups) == [(0, 2), (2, 4), (4, 6)]
    sync_rollups.update_one({"_id": key(2)}, {"$set": {"stages": []}})
    assert rollups.sum() != direct(sync_runs), "what is rolled up was read again"


def test_runs_that_come_later_are_rolled_up_in_their_turn(
    rollups: Rollups, sync_runs: Collection[Document], sync_rollups: Collection[Document]
) -> None:
    for number in range(1, 12):
        add(sync_runs, number)
        assert_nothing_is_lost(rollups, sync_runs)
    assert ranges(sync_rollups) == [(0, 2), (2, 4), (4, 6), (6, 8)]


def test_a_run_that_goes_on_again_and_ends_is_summed_up_as_it_is(
    rollups: Rollups, runs: Runs, sync_runs: Collection[Document]
) -> None:
    add(sync_runs, *range(1, 9))
    rollups.sum()
    sync_runs.update_one({"_id": key(3)}, {"$set": {"status": "running"}})
    assert_nothing_is_lost(rollups, sync_runs)
    sync_runs.update_one({"_id": key(3)}, {"$inc": {"stages.0.requests.count": 100}})
    assert_nothing_is_lost(rollups, sync_runs)
    run = runs.find(key(3))
    assert run is not None
    ended = [stage.model_copy(update={"success": 50, "failed": 0}) for stage in run.stages]
    assert runs.end(run, RunStatus.PARTIAL, "", at(99), ended, [])
    assert_nothing_is_lost(rollups, sync_runs)
    assert rollups.sum().by_entity_type["tenant"].items["failed"] == 8, "a counter has fallen"


def test_a_run_that_went_on_and_ended_while_nobody_looked_is_found(
    rollups: Rollups, runs: Runs, sync_runs: Collection[Document]
) -> None:
    add(sync_runs, *range(1, 9))
    rollups.sum()
    for number in (1, 6, 3):
        run = runs.find(key(number))
        assert run is not None
        counted = [stage.model_copy(update={"success": 70}) for stage in run.stages]
        assert runs.correct(run, counted, [])
        assert_nothing_is_lost(rollups, sync_runs)


def test_a_run_whose_machine_has_a_slow_clock_comes_into_its_range(
    rollups: Rollups, runs: Runs, sync_runs: Collection[Document]
) -> None:
    """Its `_id` is lower than those that are rolled up."""
    add(sync_runs, 1, *range(3, 10))
    rollups.sum()
    add(sync_runs, 2, status="running")
    assert_nothing_is_lost(rollups, sync_runs)
    run = runs.find(key(2))
    assert run is not None
    assert runs.end(run, RunStatus.SUCCESS, "", at(99), run.stages, [])
    assert_nothing_is_lost(rollups, sync_runs)


def test_a_run_that_was_counted_by_a_clock_that_is_behind_is_found(
    rollups: Rollups, runs: Runs, sync_runs: Collection[Document]
) -> None:
    add(sync_runs, *range(1, 9))
    rollups.sum()
    for number, ahead in ((5, timedelta()), (2, timedelta(hours=-23))):
        run = runs.find(key(number))
        assert run is not None
        counted = [stage.model_copy(update={"failed": 9}) for stage in run.stages]
        assert runs.correct(run, counted, [])
        counted_at = datetime.now(UTC) + ahead
        sync_runs.update_one({"_id": key(number)}, {"$set": {"counted_at": counted_at}})
        assert_nothing_is_lost(rollups, sync_runs)


def test_what_is_no_run_of_ours_stops_no_sum(
    rollups: Rollups, sync_runs: Collection[Document]
) -> None:
    add(sync_runs, *range(1, 9))
    sync_runs.insert_many(
        [
            {"_id": "a note", "flow_run_id": "a"},
            {"_id": key(20), "flow_run_id": "b", "status": "running", "stages": [{}]},
            {"_id": key(21), "flow_run_id": "c", "counted_at": "yesterday", "status": 7},
            run_numbered(22, stages=[{"entity_type": "odd", "success": "x", "requests": 5}]),
        ]
    )
    told = rollups.sum()
    assert told.by_status == {"success": 7, "crashed": 2, "running": 1}
    assert told.by_entity_type["tenant"].items["success"] == sum(range(1, 9))
    assert told.by_entity_type["odd"] == EntityFigures()


def test_what_another_process_reads_earlier_and_writes_later_is_put_right(
    rollups: Rollups,
    runs: Runs,
    sync_runs: Collection[Document],
    sync_rollups: Collection[Document],
) -> None:
    add(sync_runs, *range(1, 9))
    rollups.sum()
    earlier = sync_rollups.find_one({"_id": key(2)})
    assert earlier is not None
    run = runs.find(key(4))
    assert run is not None
    assert runs.correct(run, [stage.model_copy(update={"failed": 9}) for stage in run.stages], [])
    rollups.sum()
    sync_rollups.replace_one({"_id": key(2)}, earlier)
    assert_nothing_is_lost(rollups, sync_runs)


def test_processes_that_roll_up_at_once_make_no_range_twice(
    sync_runs: Collection[Document], sync_rollups: Collection[Document]
) -> None:
    """The other one saw a run that this one does not see yet, and has taken a shorter range."""
    add(sync_runs, 1, *range(3, 10))

    class Overtaken(Rollups):
        def _chain(self) -> Iterator[Any]:
            chain = list(super()._chain())
            if not chain and not sync_rollups.count_documents({}):
                add(sync_runs, 2)
                Rollups(sync_runs, sync_rollups).sum()
                sync_runs.delete_one({"_id": key(2)})
            yield from chain

    Overtaken(sync_runs, sync_rollups).sum()
    assert ranges(sync_rollups)[:2] == [(0, 2), (2, 4)]


def test_a_rollup_that_is_lost_is_made_anew_and_those_behind_it_stay_apart(
    rollups: Rollups, sync_runs: Collection[Document], sync_rollups: Collection[Document]
) -> None:
    add(sync_runs, *range(1, 12))
    rollups.sum()
    sync_rollups.delete_one({"_id": key(2)})
    sync_runs.delete_one({"_id": key(4)})
    assert_nothing_is_lost(rollups, sync_runs)
    sync_rollups.delete_many({})
    assert_nothing_is_lost(rollups, sync_runs)
