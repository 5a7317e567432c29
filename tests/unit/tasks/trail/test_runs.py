"""Runs: one document for each flow run, which no older news changes."""

from typing import Any

import pytest
from bson import ObjectId
from pymongo.collection import Collection

from tasks.trail.fields import RunId
from tasks.trail.ownership import Ownership
from tasks.trail.runs import RunErrorRecord, RunOptions, RunRecord, Runs, SyncMode, sum_of
from tasks.trail.stages import RunStatus, StageRecord, Stages, Totals
from tests.trail_documents import HUB, OPTIONS, at, begin

Document = dict[str, Any]
RUNNING, SUCCESS, CRASHED = RunStatus.RUNNING, RunStatus.SUCCESS, RunStatus.CRASHED
ERROR = RunErrorRecord(entity_type="tenant", natural_key="a", code="NOT_FOUND", message="no")


def found(runs: Runs, run_id: RunId) -> RunRecord:
    run = runs.find(run_id)
    assert run is not None
    return run


def test_a_flow_run_opens_one_run_however_often(
    runs: Runs, sync_runs: Collection[Document]
) -> None:
    asked = RunOptions(
        "REST API",
        ("domain",),
        SyncMode.CHANGED,
        dry_run=True,
        skip_orphans=True,
        disable_gone=True,
    )
    run_id = runs.open("f-1", "domain - REST API", asked)
    assert runs.open("f-1", "another name", OPTIONS) == run_id
    assert runs.open("f-2", "another run", OPTIONS) != run_id
    document = sync_runs.find_one({"flow_run_id": "f-1"})
    assert document is not None
    told = {name: document[name] for name in ("_id", "flow_run_name", "status", "trigger", "mode")}
    assert told == {
        "_id": run_id,
        "flow_run_name": "domain - REST API",
        "status": "pending",
        "trigger": "REST API",
        "mode": "changed",
    }
    assert document["parameters"] == {
        "trigger": "REST API",
        "entities": ["domain"],
        "mode": "changed",
        "dry_run": True,
        "skip_orphans": True,
        "disable_gone": True,
    }
    assert document["dry_run"] is True
    assert document["finished_at"] is document["message"] is None
    assert [stage["entity_type"] for stage in document["stages"]] == ["domain"]
    assert found(runs, run_id).options == asked


def test_a_run_that_is_not_there(runs: Runs) -> None:
    assert runs.find(ObjectId()) is None


def test_a_flow_run_has_one_run(runs: Runs, sync_runs: Collection[Document]) -> None:
    run_id = runs.open("f-1", "a run", OPTIONS)
    assert runs.open("f-1", "a run", OPTIONS) == run_id
    assert sync_runs.count_documents({}) == 1


def test_a_run_that_nobody_works_on_has_not_the_fields_that_say_so(
    runs: Runs, sync_runs: Collection[Document]
) -> None:
    runs.open("f-1", "a run", OPTIONS)
    (document,) = sync_runs.find()
    assert not {"active", "alive_at"} & set(document)
    assert document["attempt"] == 0


def test_a_run_ends_with_its_stages_and_is_their_sum(
    runs: Runs, sync_runs: Collection[Document], run_id: RunId
) -> None:
    run = found(runs, run_id)
    counted = [
        stage.model_copy(
            update={"status": SUCCESS, "total": 3, "success": 2, "skipped": 1, "unchanged": 1}
        )
        for stage in run.stages
    ]
    assert runs.end(run, SUCCESS, "6 of 6 items are in", at(10), counted, [ERROR])
    ended = found(runs, run_id)
    assert ended.stages == counted
    assert ended.totals == sum_of(counted) == Totals(total=6, success=4, skipped=2)
    assert (ended.status, ended.message, ended.finished_at) == (
        SUCCESS,
        "6 of 6 items are in",
        at(10),
    )
    assert ended.errors == [ERROR]
    (document,) = sync_runs.find()
    assert set(document["totals"]) == {"total", "success", "failed", "skipped"}


@pytest.mark.parametrize(("seconds", "is_news"), [(9.999, False), (10, True), (10.001, True)])
def test_an_end_that_is_older_news_changes_nothing(
    runs: Runs, run_id: RunId, seconds: float, is_news: bool
) -> None:
    run = found(runs, run_id)
    assert runs.end(run, SUCCESS, "all is in", at(10), run.stages, [])
    before = found(runs, run_id)
    assert runs.end(before, CRASHED, "gone", at(seconds), before.stages, []) is is_news
    assert found(runs, run_id).status is (CRASHED if is_news else SUCCESS)
    assert (found(runs, run_id) == before) is not is_news


@pytest.mark.parametrize("seconds", [10, None])
def test_a_run_that_has_ended_is_worked_on_by_nobody(
    runs: Runs,
    ownership: Ownership,
    sync_runs: Collection[Document],
    run_id: RunId,
    seconds: float | None,
) -> None:
    begin(ownership, run_id)
    run = found(runs, run_id)
    assert runs.end(run, SUCCESS, "", None if seconds is None else at(seconds), run.stages, [])
    (document,) = sync_runs.find()
    assert not {"active", "alive_at"} & set(document)


@pytest.mark.parametrize("seconds", [10, None])
def test_no_attempt_that_has_begun_since_is_ended(
    runs: Runs, ownership: Ownership, run_id: RunId, seconds: float | None
) -> None:
    run = found(runs, run_id)
    begin(ownership, run_id)
    told = None if seconds is None else at(seconds)
    before = found(runs, run_id)
    assert not runs.end(run, CRASHED, "gone", told, run.stages, [])
    assert found(runs, run_id) == before


@pytest.mark.parametrize("how", ["end", "correct"])
def test_only_what_differs_is_written(
    runs: Runs, ownership: Ownership, stages: Stages, run_id: RunId, how: str
) -> None:
    attempt = begin(ownership, run_id)
    run = found(runs, run_id)
    stages.begin(attempt, "client", HUB, at(3))  # by another process, since the run was read
    tenant, client = run.stages
    counted = [tenant.model_copy(update={"total": 1, "success": 1}), client]
    if how == "end":
        runs.end(run, CRASHED, "gone", at(10), counted, [])
    else:
        assert runs.correct(run, counted, [])
    after = found(runs, run_id)
    assert after.stages[0] == counted[0]
    assert (after.stages[1].status, after.stages[1].started_at) == (RUNNING, at(3))


def test_what_is_counted_right_is_not_written(
    runs: Runs, sync_runs: Collection[Document], run_id: RunId
) -> None:
    run = found(runs, run_id)
    assert not runs.correct(run, run.stages, [ERROR])
    assert found(runs, run_id) == run
    sync_runs.update_one({}, {"$set": {"totals.total": 5}})
    assert runs.correct(found(runs, run_id), run.stages, [ERROR])
    assert found(runs, run_id).totals == Totals()
    assert found(runs, run_id).errors == [ERROR]


@pytest.mark.parametrize("how", ["end", "correct"])
def test_who_sums_runs_up_is_told_that_one_is_counted_anew(
    runs: Runs, sync_runs: Collection[Document], run_id: RunId, how: str
) -> None:
    run = found(runs, run_id)
    for failed in (3, 1):
        counted = [stage.model_copy(update={"failed": failed}) for stage in run.stages]
        if how == "end":
            runs.end(run, CRASHED, "gone", at(10), counted, [])
        else:
            runs.correct(found(runs, run_id), counted, [])
    (document,) = sync_runs.find()
    assert document["counted_at"] > at(10)
    assert [stage["failed"] for stage in document["stages"]] == [1, 1]
    assert [stage["most_failed"] for stage in document["stages"]] == [3, 3]


def test_seconds_of_a_run_are_known_at_its_end() -> None:
    run = RunRecord(
        mode=SyncMode.FULL,
        trigger=None,
        flow_run_id="f",
        flow_run_name="n",
        started_at=at(1),
        stages=[StageRecord(entity_type="tenant")],
    )
    assert run.seconds is None
    assert run.model_copy(update={"finished_at": at(3.5)}).seconds == 2.5
    assert run.options == RunOptions("", ("tenant",))
