"""A stage: what it records before its batches, and what it comes to once they have ended."""

from dataclasses import replace
from typing import Any
from unittest.mock import Mock

import pytest
from pymongo.database import Database

from tasks.batch_result import BatchResult
from tasks.decision import NOT_SENT_IN_DRY_RUN
from tasks.errors import ItemError, StopReason
from tasks.mongo import MongoRetry
from tasks.outcome import Outcome
from tasks.request import request_of
from tasks.run import Run
from tasks.source.batch import GoneBatch
from tasks.stage import SourceMissing, close_stage, plan_gone, plan_stage, require_source
from tasks.trail.runs import RunOptions, SyncMode
from tasks.trail.stages import RunStatus, StageRecord, StageTotals, Tally
from tasks.upsert import send_batch
from tests.trail_documents import HUB, OPTIONS, PERMANENT, TRANSIENT, step_document
from tests.unit.tasks.run_in_memory import (
    BATCH,
    IN,
    RunInMemory,
    Source,
    batch_result,
    document,
    item,
)

DISABLING = replace(OPTIONS, disable_gone=True)
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


def record(run: Run, key: str, error: ItemError | None) -> None:
    tenant = item(key)
    run.record(Outcome(tenant, error, request_of(tenant, None), answer=IN))


@pytest.mark.parametrize(("batches", "expected"), [(0, 0), (2, 2), (5, 3)])
def test_a_stage_begins_with_its_batches_and_how_many_items_they_have(
    world: RunInMemory, batches: int, expected: int
) -> None:
    world.source = Source(*map(document, "abcde"[:batches]))
    run = world.open()
    planned = plan_stage(run, "tenant")
    assert [batch.name for batch in planned] == [f"tenant {number}" for number in range(batches)]
    stage = tenants_of(run)
    assert (stage.status, stage.total) == (RunStatus.RUNNING, sum(range(1, batches + 1)))
    assert stage.hub == HUB
    assert stage.started_at is not None
    assert world.slots.expected == expected, "more slots than ADMIN_CONCURRENCY, or too few"
    assert world.steps() == {}


@pytest.mark.parametrize(
    ("loser", "code", "state", "totals"),
    [
        ({"version": 0}, "DUPLICATE_KEY", "Failed", StageTotals(total=1, failed=1)),
        (
            {"deleted": True, "version": 9},
            "SUPERSEDED",
            "Skipped",
            StageTotals(total=1, skipped=1, superseded=1),
        ),
        ({"name": None, "version": 0}, "DUPLICATE_KEY", "Failed", StageTotals(total=1, failed=1)),
    ],
    ids=["older", "deleted", "invalid"],
)
def test_twins_that_lose_are_on_record_before_anything_is_sent(
    world: RunInMemory, loser: Document, code: str, state: str, totals: StageTotals
) -> None:
    world.source = Source(
        document("a"), document("b", _id="loser", **loser), document("b", _id="winner")
    )
    run = world.open()
    plan_stage(run, "tenant")
    (step,) = world.database.sync_steps.find()
    assert (step["source_id"], step["natural_key"]) == ("loser", "b")
    assert step["version"] == loser["version"]
    assert (step["error"]["code"], step["state"]) == (code, state)
    assert (step["attempts"], step["task_run_id"]) == (0, None)
    assert world.items() == {}, "it says something of the item that wins"
    assert run.trail.counting.tally(run.id, "tenant", StageTotals()).totals == totals


def test_a_stage_is_its_steps_and_what_its_batches_left_alone(world: RunInMemory) -> None:
    world.source = Source(*map(document, "ab"))
    run = world.open()
    record(run, "a", None)
    record(run, "b", PERMANENT)
    for key in "xy":
        record(run, key, NOT_SENT_IN_DRY_RUN)
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
    world.source.documents = [
        document("in"),
        document("tried"),
        document("open"),
        document("invalid", name=None),
    ]
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
    assert set(world.items()) == {"open", "invalid"}
    assert all("not_in_since" in item for item in world.items().values())


def test_items_that_are_unchanged_are_not_written_off(world: RunInMemory) -> None:
    world.source = Source(document("known"), document("new"))
    world.confirm(item("known"))
    run = world.open(replace(OPTIONS, mode=SyncMode.CHANGED))
    tally = close_stage(run, "tenant", [BATCH], ended(RuntimeError()))
    assert tally.totals == StageTotals(total=2, failed=1, skipped=1, unchanged=1)


def test_gone_items_whose_batch_an_exception_ended_are_written_off(world: RunInMemory) -> None:
    world.confirm(item("gone"))
    run = world.open(DISABLING)
    batch = GoneBatch("tenant", "gone 1 of 1", ("gone",))
    tally = close_stage(run, "tenant", [batch], ended(RuntimeError()))
    assert tally.codes == {"INTERNAL_ERROR": 1}
    assert tally.totals == StageTotals(total=1, failed=1, gone=1)


def world_with(world: RunInMemory, here: int, gone: int) -> RunInMemory:
    """Let Stage 1 hold items that are in the source, and items that are not."""
    keys = [f"k{number:02}" for number in range(here + gone)]
    world.confirm(*map(item, keys))
    world.source = Source(*map(document, keys[gone:]))
    return world


@pytest.mark.parametrize(
    ("gone", "sizes"),
    [(0, []), (1, [1]), (2, [1, 1]), (3, [1, 1, 1]), (7, [2, 2, 3]), (10, [3, 3, 4])],
)
def test_what_is_gone_is_cut_into_batches(world: RunInMemory, gone: int, sizes: list[int]) -> None:
    run = world_with(world, here=3, gone=gone).open(DISABLING)
    batches = plan_gone(run, "tenant")
    assert [len(batch.natural_keys) for batch in batches] == sizes
    assert [batch.name for batch in batches] == [
        f"tenant gone {number} of {len(sizes)}" for number in range(1, len(sizes) + 1)
    ]
    keys = [key for batch in batches for key in batch.natural_keys]
    assert sorted(keys) == [f"k{number:02}" for number in range(gone)]
    assert world.steps() == {}
    marked = [key for key, item in world.items().items() if "gone_since" in item]
    assert sorted(marked) == sorted(keys)


@pytest.mark.parametrize(
    "options", [OPTIONS, replace(OPTIONS, mode=SyncMode.CHANGED)], ids=["full", "changed"]
)
def test_what_is_gone_is_not_disabled_unless_it_is_asked_for(
    world: RunInMemory, options: RunOptions
) -> None:
    run = world_with(world, here=3, gone=2).open(options)
    assert plan_gone(run, "tenant") == []
    assert close_stage(run, "tenant", [], []).totals == StageTotals(gone=2)
    assert sum("gone_since" in item for item in world.items().values()) == 2


def test_a_stopped_run_disables_nothing_and_misses_nothing(world: RunInMemory) -> None:
    run = world_with(world, here=0, gone=2).open(DISABLING)
    run.stop_switch.stop(StopReason("Stage 1 was down"))
    assert plan_gone(run, "tenant") == []
    assert close_stage(run, "tenant", [], []).totals == StageTotals()
    assert all("gone_since" not in item for item in world.items().values())


@pytest.mark.parametrize(
    ("here", "gone", "are_too_many"),
    [(0, 10, False), (0, 11, True), (43, 11, True), (44, 11, False), (48, 12, False)],
)
def test_a_fifth_of_a_type_and_more_than_ten_are_too_many(
    world: RunInMemory, here: int, gone: int, are_too_many: bool
) -> None:
    run = world_with(world, here=here, gone=gone).open(DISABLING)
    batches = plan_gone(run, "tenant")
    assert sum(len(batch.natural_keys) for batch in batches) == (0 if are_too_many else gone)
    tally = close_stage(run, "tenant", [], [])
    assert tally.codes == ({"GONE_TOO_MANY": 1} if are_too_many else {})
    assert tally.totals.gone == gone
    items = world.items()
    assert len(items) == here + gone, "the failure counts as an item that is not in"
    if are_too_many:
        (step,) = world.database.sync_steps.find()
        assert (step["state"], step["natural_key"]) == ("Failed", None)
        assert step["error"]["message"] == (
            f"{gone} of the {here + gone} items that Stage 1 holds enabled are gone from "
            "source_tenants, too many at once: none was disabled. Check that MONGODB_URI and "
            "MONGODB_DB name the right database, and disable them by hand if they do"
        )


def test_what_a_run_has_disabled_is_no_longer_gone(world: RunInMemory) -> None:
    run = world_with(world, here=3, gone=1).open(DISABLING)
    batches = plan_gone(run, "tenant")
    futures = ended(*(send_batch(run, batch, "task-1") for batch in batches))
    tally = close_stage(run, "tenant", batches, futures)
    assert tally.totals == StageTotals(total=1, success=1)
    assert plan_gone(run, "tenant") == []


def test_a_dry_run_would_disable_what_is_gone_and_marks_nothing(world: RunInMemory) -> None:
    run = world_with(world, here=3, gone=1).open(replace(DISABLING, dry_run=True))
    batches = plan_gone(run, "tenant")
    futures = ended(*(send_batch(run, batch, "task-1") for batch in batches))
    tally = close_stage(run, "tenant", batches, futures)
    assert tally.totals == StageTotals(total=1, skipped=1, would_send=1, first="k00", gone=1)
    assert world.hub.sent == []
    (step,) = world.steps().values()
    assert step["changes"] == [{"field": "enabled", "old": "true", "new": "false"}]
    assert all("gone_since" not in item for item in world.items().values())


def test_a_database_without_any_source_collection_is_told_by_name(world: RunInMemory) -> None:
    run = world.open(MONGODB_DB="backofice")
    require_source(run, ["tenant", "client"])
    world.source.collections = ["source_clients"]
    require_source(run, ["tenant", "client"])
    with pytest.raises(SourceMissing) as raised:
        require_source(run, ["tenant", "branding"])
    assert str(raised.value) == (
        "MONGODB_DB names the database backofice, which has none of the collections "
        "source_tenants, source_brandings; nothing was sent. Check MONGODB_DB and MONGODB_URI"
    )
