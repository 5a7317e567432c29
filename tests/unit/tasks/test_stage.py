"""A stage: what it records before its batches, and what it comes to once they have ended."""

from dataclasses import replace
from typing import Any
from unittest.mock import Mock

import pytest
from bson import ObjectId
from pymongo.database import Database

from tasks.mongo import MongoRetry
from tasks.run import Run
from tasks.source.item import Item
from tasks.stage import close_stage, plan_stage
from tasks.trail.runs import SyncMode
from tasks.trail.stages import RunStatus, StageRecord, StageTotals, Tally
from tasks.upsert import BatchResult
from tests.trail_documents import OPTIONS, PERMANENT, TRANSIENT, step_document
from tests.unit.tasks.run_in_memory import BATCH, RunInMemory, Source, batch_result, tenant

Document = dict[str, Any]


@pytest.fixture
def world(
    database: Database[Document], retry: MongoRetry, monkeypatch: pytest.MonkeyPatch
) -> RunInMemory:
    return RunInMemory(database, retry, monkeypatch)


def tenants_of(run: Run) -> StageRecord:
    record = run.trail.runs.find(run.id)
    assert record is not None
    return record.stages[0]


def ended(*outcomes: BatchResult | BaseException) -> list[Any]:
    """Return the futures of batches that came to that."""
    return [Mock(**{"result.return_value": outcome}) for outcome in outcomes]


@pytest.mark.parametrize(("batches", "expected"), [(0, 0), (2, 2), (5, 3)])
def test_a_stage_begins_with_its_batches_and_how_many_items_they_have(
    world: RunInMemory, batches: int, expected: int
) -> None:
    world.source = Source(*map(tenant, "abcde"[:batches]))
    run = world.open()
    planned = plan_stage(run, "tenant")
    assert [batch.name for batch in planned] == [f"tenant {number}" for number in range(batches)]
    stage = tenants_of(run)
    assert (stage.status, stage.total) == (RunStatus.RUNNING, sum(range(1, batches + 1)))
    assert stage.started_at is not None
    assert world.slots.expected == expected, "more slots than ADMIN_CONCURRENCY, or too few"
    assert world.steps() == {}


def test_duplicates_are_on_record_before_anything_is_sent(world: RunInMemory) -> None:
    world.source = Source(tenant("a"))
    world.source.superseded = [tenant("a", _id=1), tenant("b", name=None)]
    run = world.open()
    plan_stage(run, "tenant")
    steps = world.steps()
    assert set(steps) == {"a", "b"}
    for step in steps.values():
        assert (step["error"]["code"], step["state"]) == ("DUPLICATE_KEY", "Failed")
        assert (step["attempts"], step["task_run_id"]) == (0, None)


def test_a_stage_is_its_steps_and_what_its_batches_left_alone(world: RunInMemory) -> None:
    run = world.open()
    run.record(tenant("a"), None)
    run.record(tenant("b"), PERMANENT)
    futures = ended(
        batch_result(success=1, unchanged=2),
        batch_result(failed=1, would_send=1, first="x", first_error=PERMANENT),
        batch_result(would_send=1, first="y"),
    )
    tally = close_stage(run, "tenant", [BATCH] * 3, futures)
    assert tally == Tally(
        StageTotals(total=6, success=1, failed=1, skipped=4, unchanged=2, would_send=2, first="x"),
        {"NOT_FOUND": 1},
    )
    assert all(future.result.call_args.kwargs == {"raise_on_failure": False} for future in futures)


def test_a_batch_that_an_exception_ended_is_written_off(world: RunInMemory) -> None:
    run = world.open()
    world.source.items = (
        tenant("in"),
        tenant("tried"),
        tenant("open"),
        tenant("invalid", name=None),
    )
    on_record = [
        step_document(run.id, "in"),
        step_document(run.id, "tried", TRANSIENT, attempts=2),
    ]
    world.database.sync_steps.insert_many([dict(step) for step in on_record])
    error = MemoryError("a detail that nobody is told")
    tally = close_stage(run, "tenant", [BATCH], ended(error))
    steps = world.steps()
    assert [steps["in"], steps["tried"]] == on_record
    for key in ("open", "invalid"):
        assert steps[key]["error"] == {
            "code": "INTERNAL_ERROR",
            "message": "MemoryError",
            "class": "permanent",
        }
    assert tally.totals == StageTotals(total=4, success=1, failed=3)
    assert tally.codes == {"INTERNAL_ERROR": 2, "TIMEOUT": 1}


def test_items_that_are_unchanged_are_not_written_off(world: RunInMemory) -> None:
    known = tenant("known")
    assert isinstance(known, Item)
    world.source = Source(known, tenant("new"))
    run = world.open(replace(OPTIONS, mode=SyncMode.CHANGED))
    of_another_run = step_document(ObjectId(), "known", request_id=known.request_id)
    world.database.sync_steps.insert_one(of_another_run)
    tally = close_stage(run, "tenant", [BATCH], ended(RuntimeError()))
    assert tally.totals == StageTotals(total=2, failed=1, skipped=1, unchanged=1)
