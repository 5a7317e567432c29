"""The mapped task: what is sent of a batch, what is recorded, and what Prefect is told."""

import os
import threading
from dataclasses import replace
from typing import Any
from unittest.mock import Mock

import pytest
from bson import ObjectId
from prefect.client.schemas.objects import TaskRun
from prefect.states import Failed
from pymongo.database import Database
from pymongo.errors import AutoReconnect

from tasks.errors import HUB_UNAVAILABLE, ErrorClass, ItemError, StopReason
from tasks.hub.answer import UpsertOutcome
from tasks.mongo import MongoRetry
from tasks.mongo_errors import MongoRefused, MongoUnavailable
from tasks.run import Run
from tasks.slots import SlotsUnavailable
from tasks.source.item import Item
from tasks.trail.runs import RunOptions, SyncMode
from tasks.trail.stages import RequestTimes, RunStatus
from tasks.upsert import BatchCount, BatchResult, is_transient, send_batch, upsert_task
from tests.trail_documents import (
    OPTIONS,
    PERMANENT,
    SKIPPED,
    STOPPING,
    TRANSIENT,
    at,
    step_document,
)
from tests.unit.tasks.run_in_memory import (
    BATCH,
    IN,
    Hub,
    RunInMemory,
    Source,
    batch_result,
    item,
    tenant,
)

Document = dict[str, Any]
REFUSED = UpsertOutcome(PERMANENT, 404, None, 3.0)
NO_ANSWER = UpsertOutcome(TRANSIENT, None, None, 8_000.0)
LOCKED_OUT = UpsertOutcome(STOPPING, 200, None, 1.0)


@pytest.fixture
def world(
    database: Database[Document], retry: MongoRetry, monkeypatch: pytest.MonkeyPatch
) -> RunInMemory:
    return RunInMemory(database, retry, monkeypatch)


def told(step: Document, *names: str) -> tuple[Any, ...]:
    return tuple(step[name] for name in names)


def code(step: Document) -> Any:
    return step["error"] and step["error"]["code"]


def spied_gate(run: Run) -> Mock:
    gate = Mock(wraps=run.gate, closed_because=None)
    run.gate = gate
    return gate


def test_an_item_is_sent_and_what_came_of_it_is_on_record(world: RunInMemory) -> None:
    item = tenant("acme", logo="l.png")
    assert isinstance(item, Item)
    world.source = Source(item)
    run = world.open()
    assert send_batch(run, BATCH, "task-1") == batch_result(success=1)
    body = {"id": "acme", "name": "Acme", "enabled": True, "logo": "l.png"}
    assert world.hub.sent == [("tenant", item.request_id, body)]
    step = world.steps()["acme"]
    assert told(step, "run_id", "flow_run_id", "run_attempt") == (run.id, "a flow run", 1)
    assert told(step, "source_id", "version", "request_id") == ("acme", 1, item.request_id)
    assert told(step, "ok", "state", "error", "attempts") == (True, "Completed", None, 1)
    assert told(step, "http_status", "sync_id", "duration_ms") == (200, "sync-1", 12.5)
    assert step["task_run_id"] == "task-1"


def test_an_item_that_fails_stops_no_other(world: RunInMemory) -> None:
    world.source = Source(tenant("a"), tenant("b"), tenant("c"), tenant("d", name=None))
    world.hub = Hub(REFUSED, NO_ANSWER, IN)
    result = send_batch(world.open(), BATCH, "task-1")
    assert result == batch_result(success=1, failed=3, to_retry=1, first_error=PERMANENT)
    steps = world.steps()
    assert told(steps["a"], "state", "http_status", "attempts") == ("Failed", 404, 1)
    assert told(steps["b"], "state", "http_status", "attempts") == ("AwaitingRetry", None, 1)
    assert told(steps["c"], "state", "sync_id") == ("Completed", "sync-1")
    assert told(steps["d"], "state", "request_id", "attempts") == ("Failed", None, 0)
    assert [code(step) for step in steps.values()] == [
        "NOT_FOUND",
        "TIMEOUT",
        None,
        "VALIDATION_ERROR",
    ]
    assert world.hub.keys == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("prior", "run_attempt", "result", "sends_as"),
    [
        (None, 2, batch_result(success=1), None),
        (None, 1, batch_result(success=1), None),
        (PERMANENT, 2, batch_result(failed=1, first_error=PERMANENT), None),
        (SKIPPED, 2, batch_result(skipped=1, first_error=SKIPPED), None),
        (PERMANENT, 1, batch_result(success=1), 4),
        (SKIPPED, 1, batch_result(success=1), 4),
        (TRANSIENT, 2, batch_result(success=1), 4),
        (TRANSIENT, 1, batch_result(success=1), 4),
    ],
)
def test_an_item_with_a_step_on_record(
    world: RunInMemory,
    prior: ItemError | None,
    run_attempt: int,
    result: BatchResult,
    sends_as: int | None,
) -> None:
    world.source = Source(tenant("acme"))
    world.open()
    run = world.open()
    step = step_document(run.id, "acme", prior, attempts=3, run_attempt=run_attempt)
    world.database.sync_steps.insert_one(dict(step))
    assert send_batch(run, BATCH, "task-1") == result
    after = world.steps()["acme"]
    if sends_as is None:
        assert world.hub.sent == []
        assert after == step
    else:
        assert told(after, "ok", "attempts", "run_attempt") == (True, sends_as, 2)


def test_what_an_earlier_run_has_sent_is_left_alone(world: RunInMemory) -> None:
    known, new = tenant("known"), tenant("new")
    assert isinstance(known, Item)
    world.source = Source(known, new)
    run = world.open(replace(OPTIONS, mode=SyncMode.CHANGED))
    of_another_run = step_document(ObjectId(), "known", request_id=known.request_id)
    world.database.sync_steps.insert_one(of_another_run)
    assert send_batch(run, BATCH, "task-1") == batch_result(success=1, unchanged=1)
    assert world.hub.keys == ["new"]
    assert world.database.sync_steps.count_documents({"run_id": run.id}) == 1


def test_a_dry_run_sends_nothing_and_takes_no_slot(world: RunInMemory) -> None:
    world.source = Source(tenant("a"), tenant("b"), tenant("c", name=None))
    result = send_batch(world.open(replace(OPTIONS, dry_run=True)), BATCH, "task-1")
    assert result == batch_result(failed=1, would_send=2, first="a", first_error=result.first_error)
    assert world.hub.sent == []
    assert world.slots.held_by == []
    assert [code(step) for step in world.steps().values()] == ["VALIDATION_ERROR"]


@pytest.mark.parametrize("skip_orphans", [True, False])
def test_a_child_of_a_failed_parent(world: RunInMemory, skip_orphans: bool) -> None:
    world.source = Source(item("subtenant", "s", tenant_id="acme"))
    options = RunOptions("a test", ("tenant", "subtenant"), skip_orphans=skip_orphans)
    run = world.open(options)
    world.database.sync_steps.insert_one(step_document(run.id, "acme", PERMANENT))
    send_batch(run, replace(BATCH, entity_type="subtenant"), "task-1")
    assert world.hub.keys == ([] if skip_orphans else ["s"])
    assert code(world.steps()["s"]) == ("PARENT_FAILED" if skip_orphans else None)


def test_a_run_that_was_stopped_sends_nothing_and_retries_nothing(world: RunInMemory) -> None:
    world.source = Source(tenant("new"), tenant("tried"))
    run = world.open()
    tried = step_document(run.id, "tried", TRANSIENT, attempts=1)
    world.database.sync_steps.insert_one(dict(tried))
    run.stop(StopReason("Stage 1 was down", HUB_UNAVAILABLE))
    result = send_batch(run, BATCH, "task-1")
    assert (result.totals.skipped, result.totals.failed, result.to_retry) == (1, 1, 0)
    assert world.hub.sent == []
    steps = world.steps()
    assert steps["tried"] == tried
    assert told(steps["new"], "state", "attempts", "task_run_id") == ("Skipped", 0, "task-1")
    assert steps["new"]["error"] == {
        "code": HUB_UNAVAILABLE,
        "message": "not sent: Stage 1 was down",
        "class": "skipped",
    }


def test_what_is_true_of_every_item_stops_the_run(world: RunInMemory) -> None:
    world.source = Source(*map(tenant, "abcd"))
    world.hub = Hub(NO_ANSWER, LOCKED_OUT)
    run = world.open()
    result = send_batch(run, BATCH, "task-1")
    assert (result.totals.failed, result.totals.skipped, result.to_retry) == (2, 2, 0)
    assert world.hub.keys == ["a", "b"]
    reason = "INVALID_TOKEN at tenant b: who are you?"
    assert run.stopped_because() == StopReason(reason)
    assert world.trail.stops.reason(run.attempt) == StopReason(reason), "other processes go on"
    steps = world.steps()
    assert told(steps["b"], "state", "http_status") == ("Failed", 200)
    assert steps["c"]["error"]["message"] == f"not sent: {reason}"


def test_a_stage_1_that_stays_down_stops_the_run(world: RunInMemory) -> None:
    world.source = Source(*map(tenant, "abc"))
    world.hub = Hub(NO_ANSWER, NO_ANSWER, NO_ANSWER)
    run = world.open(
        ADMIN_BREAKER_FAILURES="1", ADMIN_BREAKER_PROBE_MS="1", ADMIN_BREAKER_LIMIT_MS="1"
    )
    send_batch(run, BATCH, "task-1")
    assert world.hub.keys == ["a", "b"]
    reason = world.trail.stops.reason(run.attempt)
    assert reason is not None
    assert reason.code == HUB_UNAVAILABLE == code(world.steps()["c"])


@pytest.mark.parametrize(("asked_for", "held"), [(0.01, [0.01]), (30.0, [0.05]), (None, [])])
def test_a_pause_that_stage_1_asks_for_is_kept_up_to_the_limit(
    world: RunInMemory, asked_for: float | None, held: list[float]
) -> None:
    world.source = Source(tenant("a"), tenant("b"))
    world.hub = Hub(replace(NO_ANSWER, http_status=503, retry_after_seconds=asked_for))
    run = world.open(ADMIN_RETRY_AFTER_MAX_MS="50")
    gate = spied_gate(run)
    send_batch(run, BATCH, "task-1")
    assert [each.args[0] for each in gate.hold.call_args_list] == held
    assert world.hub.keys == ["a", "b"]


def test_an_exception_of_our_own_gives_the_permit_back(world: RunInMemory) -> None:
    world.source = Source(*map(tenant, "abc"))
    world.hub = Hub(IN, ValueError("no JSON form"))
    run = world.open()
    gate = spied_gate(run)
    with pytest.raises(ValueError, match="no JSON form"):
        send_batch(run, BATCH, "task-1")
    assert gate.abandon.call_count == gate.report.call_count == 1
    assert world.hub.keys == ["a", "b"]
    world.trail.buffer.flush()
    assert set(world.steps()) == {"a"}


def test_nothing_is_sent_that_could_not_be_recorded(world: RunInMemory) -> None:
    world.source = Source(*map(tenant, "abc"))
    run = world.open()
    gate = spied_gate(run)
    away = Mock(**{"topology_description.has_writable_server.return_value": False})
    away.admin.command.side_effect = [None, AutoReconnect("gone")]
    run.retry = MongoRetry(away, seconds=0)
    with pytest.raises(MongoUnavailable):
        send_batch(run, BATCH, "task-1")
    assert gate.abandon.call_count == gate.report.call_count == 1
    assert world.hub.keys == ["a"]


def test_requests_are_counted_and_a_slot_is_held_while_the_run_goes_on(
    world: RunInMemory,
) -> None:
    world.source = Source(tenant("a"), tenant("b"), tenant("c", name=None))
    world.hub = Hub(REFUSED, NO_ANSWER)
    run = world.open()
    stages: Any = world.trail.stages
    send_batch(run, BATCH, "task-1")
    assert stages.requests == [("tenant", RequestTimes.of([3.0, 8_000.0]))]
    assert world.slots.held_by == [True]
    run.cancel()
    send_batch(run, BATCH, "task-1")
    assert world.slots.held_by == [True, False]


@pytest.mark.parametrize("is_here", [True, False])
def test_a_batch_elsewhere_that_outlives_its_run_counts_its_stage(
    world: RunInMemory, is_here: bool
) -> None:
    world.source = Source(tenant("a"), tenant("b"))
    run = world.open(is_here=is_here)
    world.trail.counting.end_run(run.id, RunStatus.CRASHED, "gone", at(0))
    send_batch(run, BATCH, "task-1")
    record = world.trail.runs.find(run.id)
    assert record is not None
    assert record.totals.skipped == record.stages[0].total == (0 if is_here else 2)


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="no affinity on this system")
@pytest.mark.parametrize(("task_runner", "moves"), [("threads", False), ("dask", True)])
def test_threads_that_send_share_a_core(world: RunInMemory, task_runner: str, moves: bool) -> None:
    run = world.open(ADMIN_TASK_RUNNER=task_runner)
    cores: list[set[int]] = []

    def send() -> None:
        cores.append(os.sched_getaffinity(0))
        send_batch(run, BATCH, "task-1")
        cores.append(os.sched_getaffinity(0))

    thread = threading.Thread(target=send)
    thread.start()
    thread.join()
    before, after = cores
    assert after == before if moves else len(after) == 1


@pytest.mark.parametrize(
    ("error", "result"),
    [
        (None, batch_result(success=1)),
        (PERMANENT, batch_result(failed=1, first_error=PERMANENT)),
        (STOPPING, batch_result(failed=1, first_error=STOPPING)),
        (TRANSIENT, batch_result(failed=1, to_retry=1, first_error=TRANSIENT)),
        (SKIPPED, batch_result(skipped=1, first_error=SKIPPED)),
    ],
)
def test_what_an_outcome_adds_to_the_result(error: ItemError | None, result: BatchResult) -> None:
    count = BatchCount()
    count.add_outcome(error)
    assert count.result() == result
    count.add_outcome(ItemError("LATER", "it came later", ErrorClass.PERMANENT))
    assert count.result().first_error == (error or count.result().first_error)


def test_items_that_were_left_alone_are_skipped() -> None:
    count = BatchCount()
    count.add_outcome(None)
    count.add_unchanged()
    for natural_key in "ab":
        count.add_would_send(natural_key)
    assert count.result() == batch_result(1, unchanged=1, would_send=2, first="a")


@pytest.mark.parametrize(
    ("result", "is_completed", "message"),
    [
        (batch_result(), True, "0 of 0 items are in"),
        (batch_result(success=3), True, "3 of 3 items are in"),
        (batch_result(success=1, unchanged=2), True, "1 of 1 items are in, 2 were left alone"),
        (batch_result(would_send=2, first="a"), True, "0 of 0 items are in, 2 were left alone"),
        (
            batch_result(failed=1, first_error=PERMANENT),
            False,
            "NOT_FOUND: there is no such tenant",
        ),
        (
            batch_result(skipped=1, first_error=SKIPPED, unchanged=1),
            False,
            "RUN_STOPPED: not sent: the run was cancelled",
        ),
        (
            batch_result(success=2, failed=1, skipped=1, unchanged=3, first_error=PERMANENT),
            False,
            "2 of 4 items are in, 3 were left alone; NOT_FOUND: there is no such tenant",
        ),
    ],
)
def test_state_of_a_task_run(result: BatchResult, is_completed: bool, message: str) -> None:
    state = result.as_state()
    assert state.is_completed() is is_completed
    assert state.is_failed() is not is_completed
    assert state.message == message
    assert state.data is result


@pytest.mark.parametrize(
    ("data", "is_worth_a_retry"),
    [
        (batch_result(failed=2, to_retry=1), True),
        (batch_result(failed=2), False),
        (MongoUnavailable("away"), True),
        (SlotsUnavailable(Mock()), True),
        (MongoRefused("no"), False),
        (ValueError(), False),
        (None, False),
    ],
)
def test_only_a_transient_failure_is_worth_a_retry(data: Any, is_worth_a_retry: bool) -> None:
    task_run = Mock(spec=TaskRun)
    assert is_transient(Mock(), task_run, Failed(data=data)) is is_worth_a_retry


def test_the_settings_say_how_often_prefect_retries(world: RunInMemory) -> None:
    run = world.open(ADMIN_RETRY_MAX="3", ADMIN_RETRY_BASE_DELAY_MS="200")
    task = upsert_task(run.settings)
    assert task.retries == 3
    assert task.retry_delay_seconds == pytest.approx([0.2, 0.4, 0.8])
    assert task.retry_condition_fn is is_transient
