"""The mapped task: what is sent of a batch, what is recorded, and what Prefect is told."""

import os
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any
from unittest.mock import Mock

import pytest
from prefect.client.schemas.objects import TaskRun
from prefect.exceptions import Abort
from prefect.states import Failed
from pymongo.database import Database
from pymongo.errors import AutoReconnect

from tasks.batch_result import BatchCount, BatchResult
from tasks.entities import entity_type_named
from tasks.errors import (
    FLOW_RUN_DELETED,
    HUB_UNAVAILABLE,
    RUN_CANCELLED,
    RUN_ENDED,
    RUN_SUSPENDED,
    RUN_TAKEN_OVER,
    ErrorClass,
    ItemError,
    LeaveReason,
    StopReason,
)
from tasks.hub.answer import UpsertOutcome
from tasks.limit import SlotsUnavailable
from tasks.mongo import MongoRetry
from tasks.mongo_errors import MongoRefused, MongoUnavailable
from tasks.request import request_of
from tasks.run import Run
from tasks.source.batch import GoneBatch
from tasks.source.item import Item, item_from
from tasks.source.request_id import request_id
from tasks.stage import plan_stage
from tasks.trail.items import Announcement
from tasks.trail.runs import RunOptions, SyncMode
from tasks.trail.stages import RequestTimes, RunStatus
from tasks.upsert import is_transient, send_batch, upsert_task
from tests.trail_documents import (
    HUB,
    OPTIONS,
    PERMANENT,
    SKIPPED,
    STOPPING,
    TRANSIENT,
    at,
    item_key,
    sent,
    step_document,
)
from tests.unit.tasks.run_in_memory import (
    BATCH,
    IN,
    NOW,
    Hub,
    RunInMemory,
    Source,
    batch_result,
    document,
    item,
)

Document = dict[str, Any]
REFUSED = UpsertOutcome(PERMANENT, 404, None, 3.0, is_refusal=True)
NO_ANSWER = UpsertOutcome(TRANSIENT, None, None, 8_000.0)
LOCKED_OUT = UpsertOutcome(STOPPING, 200, None, 1.0)
FORBIDDEN = UpsertOutcome(
    ItemError("HTTP_403", "Forbidden", ErrorClass.RUN_STOPPING), 403, None, 1.0
)


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
    gate = Mock(wraps=run.gates["tenant"], closed_because=None)
    run.gates["tenant"] = gate
    return gate


def test_an_item_is_sent_and_what_came_of_it_is_on_record(world: RunInMemory) -> None:
    request = request_of(item("acme", logo="l.png"), None)
    world.source = Source(document("acme", logo="l.png"))
    run = world.open()
    assert send_batch(run, BATCH, "task-1") == batch_result(success=1)
    body = {"id": "acme", "name": "Acme", "enabled": True, "logo": "l.png"}
    assert world.hub.sent == [("tenant", request.request_id, body)]
    step = world.steps()["acme"]
    assert told(step, "run_id", "flow_run_id", "run_attempt") == (run.id, "a flow run", 1)
    assert told(step, "source_id", "version", "request_id") == ("acme", 1, request.request_id)
    assert told(step, "ok", "state", "error", "attempts") == (True, "Completed", None, 1)
    assert told(step, "http_status", "sync_id", "duration_ms") == (200, "sync-1", 12.5)
    assert step["task_run_id"] == "task-1"
    record = world.items()["acme"]
    assert told(record, "hub", "entity_type", "source_id") == (HUB, "tenant", "acme")
    assert told(record["confirmed"], "request_id", "version", "body", "sync_id", "run_id") == (
        request.request_id,
        1,
        body,
        "sync-1",
        run.id,
    )
    assert record["last"]["ok"] is True
    assert "in_doubt" not in record


def test_an_item_that_fails_stops_no_other(world: RunInMemory) -> None:
    world.source = Source(document("a"), document("b"), document("c"), document("d", name=None))
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
    items = world.items()
    assert {key: item["last"]["ok"] for key, item in items.items()} == {
        "a": False,
        "b": False,
        "c": True,
        "d": False,
    }
    assert [items[key]["attempts"] for key in "abd"] == [1, 1, 0]


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
    world.source = Source(document("acme"))
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
    world.source = Source(document("known"), document("new"))
    world.confirm(item("known"))
    before = world.items()["known"]
    run = world.open(replace(OPTIONS, mode=SyncMode.CHANGED))
    assert send_batch(run, BATCH, "task-1") == batch_result(success=1, unchanged=1)
    assert world.hub.keys == ["new"]
    assert set(world.steps()) == {"new"}
    assert world.items()["known"] == before


def edited(world: RunInMemory) -> None:
    world.source.documents = [document("a", name="Another name")]


def failing(world: RunInMemory) -> None:
    world.fail(item("a"))


def doubtful(world: RunInMemory) -> None:
    announced = sent("an id", digest="other content").model_dump()
    world.database.sync_items.update_one({}, {"$set": {"in_doubt": [announced]}})


def held_by_another_hub(world: RunInMemory) -> None:
    world.database.sync_items.update_one({}, {"$set": {"hub": "https://other.example/upsert"}})


@pytest.mark.parametrize("happening", [edited, failing, doubtful, held_by_another_hub])
def test_what_stage_1_does_not_hold_as_it_is_is_sent(
    world: RunInMemory, happening: Callable[[RunInMemory], None]
) -> None:
    world.source = Source(document("a"))
    world.confirm(item("a"))
    happening(world)
    send_batch(world.open(replace(OPTIONS, mode=SyncMode.CHANGED)), BATCH, "task-1")
    assert world.hub.keys == ["a"]


def test_a_full_run_sends_what_is_unchanged_under_the_id_that_was_confirmed(
    world: RunInMemory,
) -> None:
    documents = [document("a"), document("b", version=None)]
    world.source = Source(*documents)
    for _ in range(2):
        run = world.open(replace(OPTIONS, mode=SyncMode.FULL))
        world.database.sync_steps.delete_many({})
        assert send_batch(run, BATCH, "task-1") == batch_result(success=2)
    ids = [request_id for _, request_id, _ in world.hub.sent]
    assert ids[:2] == ids[2:]
    assert [len(item["confirmed_ids"]) for item in world.items().values()] == [1, 1]


def test_items_are_announced_before_they_are_sent(world: RunInMemory) -> None:
    keys = [f"t{number:03}" for number in range(102)]
    world.source = Source(*map(document, keys))
    announced: list[set[str]] = []
    world.hub.before = lambda: announced.append(in_doubt(world))
    send_batch(world.open(), BATCH, "task-1")
    assert len(announced) == len(world.hub.keys) == 102
    assert all(key in doubtful for key, doubtful in zip(world.hub.keys, announced, strict=True)), (
        "something was sent that was not announced"
    )
    assert max(map(len, announced)) <= 100, "a crash leaves more in doubt than it need"
    assert in_doubt(world) == set()


@pytest.mark.parametrize(
    ("answer", "doubtful"),
    [(REFUSED, set()), (replace(REFUSED, is_refusal=False), {"a"}), (NO_ANSWER, {"a"})],
    ids=["refused", "refused by who knows whom", "no answer"],
)
def test_what_stage_1_surely_has_not_taken_is_not_in_doubt(
    world: RunInMemory, answer: UpsertOutcome, doubtful: set[str]
) -> None:
    world.source = Source(document("a"))
    world.hub = Hub(answer)
    send_batch(world.open(), BATCH, "task-1")
    assert in_doubt(world) == doubtful
    record = world.items()["a"]
    assert told(record, "attempts", "not_in_since") == (1, record["last"]["at"])


def test_a_stop_withdraws_what_was_announced_and_is_not_sent(world: RunInMemory) -> None:
    world.source = Source(*map(document, "abc"))
    world.hub = Hub(LOCKED_OUT)
    run = world.open()
    announced: list[set[str]] = []
    world.hub.before = lambda: announced.append(in_doubt(world))
    send_batch(run, BATCH, "task-1")
    assert (world.hub.keys, announced) == (["a"], [{"a", "b", "c"}])
    assert in_doubt(world) <= {"a"}
    assert told(world.items()["b"]["last"], "ok", "error") == (
        False,
        {
            "code": "RUN_STOPPED",
            "message": "not sent: INVALID_TOKEN at tenant a: who are you?",
            "class": "skipped",
        },
    )


def test_a_lost_answer_is_asked_for_again_under_the_same_id(world: RunInMemory) -> None:
    world.source = Source(document("a", version=None, name="Changed"))
    world.confirm(item("a", version=None))
    world.hub = Hub(NO_ANSWER)
    run = world.open()
    for _ in range(2):
        send_batch(run, BATCH, "task-1")
    (_, first, _), (_, second, _) = world.hub.sent
    assert first == second
    record = world.items()["a"]
    assert record["confirmed"]["request_id"] == first
    assert record["recovered"]["run_id"] == run.id


@pytest.mark.parametrize(
    ("confirmed", "now", "code_"),
    [
        ([{}], {"name": "Edited"}, "VERSION_NOT_RAISED"),
        ([{}, {"version": 2, "name": "Edited"}], {}, "VERSION_REUSED"),
    ],
)
def test_a_repeat_counts_as_failed_though_stage_1_says_that_it_is_in(
    world: RunInMemory, confirmed: list[Document], now: Document, code_: str
) -> None:
    for fields in confirmed:
        world.confirm(item("a", **fields))
    before = world.items()["a"]
    world.source = Source(document("a", **now))
    result = send_batch(world.open(), BATCH, "task-1")
    assert (result.totals.failed, result.totals.success, result.to_retry) == (1, 0, 0)
    assert world.hub.keys == ["a"], "a kinder Stage 1 gets no chance"
    step, record = world.steps()["a"], world.items()["a"]
    assert told(step, "ok", "state", "http_status", "sync_id") == (False, "Failed", 200, "sync-1")
    assert code(step) == record["last"]["error"]["code"] == code_
    assert record["confirmed"] == before["confirmed"]
    assert told(record, "attempts", "not_in_since") == (1, record["last"]["at"])


@pytest.mark.parametrize("skips_orphans", [True, False])
def test_children_of_an_item_that_is_in_at_an_older_version_are_sent(
    world: RunInMemory, skips_orphans: bool
) -> None:
    world.confirm(item("acme"))
    world.source = Source(document("acme", name="Edited"))
    options = RunOptions("a test", ("tenant", "subtenant"), skip_orphans=skips_orphans)
    run = world.open(options)
    send_batch(run, BATCH, "task-1")
    world.source.documents = [document("s", tenant_id="acme")]
    send_batch(run, replace(BATCH, entity_type="subtenant"), "task-1")
    assert world.hub.keys == ["acme", "s"]


def in_doubt(world: RunInMemory) -> set[str]:
    return {key for key, item in world.items().items() if item.get("in_doubt")}


class Intruder:
    """Announces a document, as another process would, just before the items of a batch are."""

    def __init__(self, world: RunInMemory, other: Document) -> None:
        self._items = world.trail.items
        self._source = world.source
        self._other: Document | None = other

    def __getattr__(self, name: str) -> Any:
        return getattr(self._items, name)

    def announce(self, announcements: Sequence[Announcement]) -> set[str]:
        if other := self._other:
            self._other = None
            self._source.documents.append(other)
            self._source.documents.sort(key=lambda each: str(each["_id"]))
            found = item_from(entity_type_named("tenant"), other, NOW)
            assert isinstance(found, Item)
            self._items.announce([announcement_of(found)])
        return self._items.announce(announcements)


def announcement_of(item: Item, known_source_id: Any = None) -> Announcement:
    request = request_of(item, None)
    told = sent(request.request_id, version=request.version, digest=item.digest)
    return Announcement(item_key(item.natural_key), item.source_id, told, known_source_id)


@pytest.mark.parametrize(
    ("other", "sends", "step"),
    [
        ({"_id": "z", "version": 2}, [], "DUPLICATE_KEY"),
        ({"_id": "0", "version": 1}, [], "DUPLICATE_KEY"),
        ({"_id": "z", "version": 1}, ["a"], None),
        ({"_id": "z", "version": 0}, ["a"], None),
        ({"_id": "z", "version": 2, "deleted": True}, ["a"], None),
    ],
    ids=["higher", "equal, and lower _id", "equal, and higher _id", "lower", "deleted"],
)
def test_an_item_that_another_document_takes_meanwhile_is_looked_up_again(
    world: RunInMemory, other: Document, sends: list[str], step: str | None
) -> None:
    world.source = Source(document("b"), document("a", _id="m"))
    run = world.open()
    intruder: Any = Intruder(world, document("a", **other))
    run.trail = replace(run.trail, items=intruder)
    result = send_batch(run, BATCH, "task-1")
    assert world.hub.keys == ["b", *sends]
    assert result.totals.total == 2
    own = world.database.sync_steps.find_one({"source_id": "m"})
    assert own is not None
    assert code(own) == step
    assert world.items()["a"]["source_id"] == ("m" if sends else other["_id"])


def test_twins_of_an_item_that_is_taken_meanwhile_are_on_record_too(world: RunInMemory) -> None:
    world.source = Source(document("a", _id="1"), document("a", _id="2", version=2))
    run = world.open()
    intruder: Any = Intruder(world, document("a", _id="3", version=3))
    run.trail = replace(run.trail, items=intruder)
    result = send_batch(run, BATCH, "task-1")
    assert world.hub.sent == []
    steps = {step["source_id"]: code(step) for step in world.database.sync_steps.find()}
    assert steps == {"1": "DUPLICATE_KEY", "2": "DUPLICATE_KEY"}
    assert result.totals.failed == 2


def test_a_repeat_does_not_hide_what_a_better_twin_has_brought_in_meanwhile(
    world: RunInMemory,
) -> None:
    """A full run repeats version 1 while another process sends version 2 of a new document."""
    world.confirm(item("a", _id="1"))
    world.source = Source(document("a", _id="1"))
    run = world.open()
    world.hub.before = lambda: world.confirm(item("a", _id="2", version=2, name="Newer"))
    send_batch(run, BATCH, "task-1")
    known = world.trail.items.known(HUB, "tenant", ["a"])["a"]
    assert not request_of(item("a", _id="1"), known).is_in, "Stage 1 has version 2"


def test_a_better_twin_that_appears_while_the_other_is_about_to_be_sent_waits_for_the_next_run(
    world: RunInMemory,
) -> None:
    """Both would be sent at once, and the worse one perhaps last."""
    world.source = Source(document("0"), document("a", _id="1"))
    run = world.open()
    better = item("a", _id="2", version=2, name="Newer")
    is_lost: list[bool] = []

    def another_batch() -> None:
        world.source.documents.append(document("a", _id="2", version=2, name="Newer"))
        (candidate,) = run.lookup.candidates(better.entity_type, [better])
        is_lost.append(candidate.lost_as is not None)

    world.hub.before = another_batch
    send_batch(run, BATCH, "task-1")
    assert is_lost[0]
    (candidate,) = world.open().lookup.candidates(better.entity_type, [better])
    assert candidate.lost_as is not None, "it is the same run yet"


def test_a_dry_run_sends_nothing_and_takes_no_slot(world: RunInMemory) -> None:
    world.source = Source(document("a"), document("b"), document("c", name=None))
    result = send_batch(world.open(replace(OPTIONS, dry_run=True)), BATCH, "task-1")
    assert result == batch_result(failed=1, would_send=2, first="a", first_error=result.first_error)
    assert world.hub.sent == []
    assert world.slots.held_by == []
    assert {key: code(step) for key, step in world.steps().items()} == {
        "a": "WOULD_SEND",
        "b": "WOULD_SEND",
        "c": "VALIDATION_ERROR",
    }
    assert world.items() == {}, "it was announced, or it counts as not in"


def test_a_dry_run_says_what_would_change_and_changes_no_record(world: RunInMemory) -> None:
    held = [item("same"), item("edited"), item("gone"), item("back")]
    world.confirm(*held)
    world.fail(held[0])
    world.database.sync_items.update_one({"natural_key": "back"}, {"$set": {"gone_since": at(2)}})
    before = world.items()
    world.source = Source(
        document("same"),
        document("edited", version=2, name="New Name", secret="marked"),
        document("new", logo="l.png"),
        document("back"),
    )
    run = world.open(replace(OPTIONS, dry_run=True, mode=SyncMode.CHANGED))
    result = send_batch(run, BATCH, "task-1")
    assert result == batch_result(would_send=3, unchanged=1, first="same")
    changes = {
        key: [told(each, "field", "old", "new") for each in step["changes"]]
        for key, step in world.steps().items()
    }
    assert changes == {
        "same": [],
        "edited": [("name", '"Edited"', '"New Name"'), ("secret", None, "(not shown)")],
        "new": [
            ("enabled", None, "true"),
            ("id", None, '"new"'),
            ("logo", None, '"l.png"'),
            ("name", None, '"New"'),
        ],
    }
    step = world.steps()["edited"]
    assert told(step, "state", "attempts", "version") == ("Skipped", 0, 2)
    assert (step["request_id"], step["task_run_id"]) == (
        request_of(item("edited", version=2), None).request_id,
        "task-1",
    )
    assert world.items() == before


def test_a_dry_run_that_is_tried_again_comes_to_the_same(world: RunInMemory) -> None:
    world.source = Source(document("a"), document("b"))
    run = world.open(replace(OPTIONS, dry_run=True))
    results = [send_batch(run, BATCH, "task-1") for _ in range(2)]
    assert results == [batch_result(would_send=2, first="a")] * 2


def test_a_dry_run_says_what_stage_1_would_take_for_a_repeat(world: RunInMemory) -> None:
    world.confirm(item("a"))
    before = world.items()
    world.source = Source(document("a", name="Edited"))
    result = send_batch(world.open(replace(OPTIONS, dry_run=True)), BATCH, "task-1")
    assert (result.totals.failed, result.totals.would_send) == (1, 0)
    assert code(world.steps()["a"]) == "VERSION_NOT_RAISED"
    assert (world.items(), world.hub.sent) == (before, [])


def test_documents_that_are_back_are_noted_though_nothing_is_sent(world: RunInMemory) -> None:
    world.confirm(item("back"), item("gone"))
    world.database.sync_items.update_many({}, {"$set": {"gone_since": at(2)}})
    world.source = Source(document("back"))
    send_batch(world.open(replace(OPTIONS, mode=SyncMode.CHANGED)), BATCH, "task-1")
    assert world.hub.sent == []
    assert [key for key, item in world.items().items() if "gone_since" in item] == ["gone"]


def test_a_document_that_is_back_is_gone_no_more_though_its_parent_failed(
    world: RunInMemory,
) -> None:
    back = item("back", "subtenant", tenant_id="acme")
    world.confirm(back)
    world.database.sync_items.update_many({}, {"$set": {"gone_since": at(2)}})
    world.source = Source(document("back", tenant_id="acme"))
    run = world.open(RunOptions("a test", ("tenant", "subtenant"), skip_orphans=True))
    world.database.sync_steps.insert_one(step_document(run.id, "acme", PERMANENT))
    send_batch(run, replace(BATCH, entity_type="subtenant"), "task-1")
    assert code(world.steps()["back"]) == "PARENT_FAILED"
    assert "gone_since" not in world.items()["back"]


def test_what_can_not_be_disabled_is_gone_since_it_was_first_missed(world: RunInMemory) -> None:
    world.confirm(item("gone"))
    world.database.sync_items.update_many({}, {"$set": {"gone_since": at(2)}})
    world.hub = Hub(REFUSED)
    send_batch(world.open(), GoneBatch("tenant", "gone 1 of 1", ("gone",)), "task-1")
    assert code(world.steps()["gone"]) == "NOT_FOUND"
    assert world.items()["gone"]["gone_since"] == at(2)


def test_what_is_gone_is_sent_once_more_disabled(world: RunInMemory) -> None:
    as_confirmed = item("gone", logo="l.png")
    world.confirm(as_confirmed, item("back"))
    world.source = Source(document("back"))
    batch = GoneBatch("tenant", "gone 1 of 1", ("gone", "back"))
    assert send_batch(world.open(), batch, "task-1") == batch_result(success=1)
    assert world.hub.sent == [
        (
            "tenant",
            request_id("tenant", "gone", "1-gone"),
            {**as_confirmed.body, "enabled": False},
        )
    ]
    step, record = world.steps()["gone"], world.items()["gone"]
    assert told(step, "ok", "version", "source_id") == (True, "1-gone", "gone:gone")
    assert record["confirmed"]["body"]["enabled"] is False
    assert "gone_since" not in record


@pytest.mark.parametrize(
    ("deleted", "code_", "is_completed"),
    [({"deleted": True}, "SUPERSEDED", True), ({"version": 0}, "DUPLICATE_KEY", False)],
)
@pytest.mark.parametrize("is_planned", [True, False])
def test_a_twin_that_loses_is_not_sent_and_a_deleted_one_fails_no_task_run(
    world: RunInMemory, deleted: Document, code_: str, is_completed: bool, is_planned: bool
) -> None:
    world.source = Source(document("a", _id=1), document("a", _id=2, **deleted))
    run = world.open()
    if is_planned:
        plan_stage(run, "tenant")
    result = send_batch(run, BATCH, "task-1")
    assert world.hub.keys == ["a"]
    (loser,) = world.database.sync_steps.find({"source_id": 2})
    assert code(loser) == code_
    assert result.totals.success == 1
    assert result.as_state().is_completed() is is_completed
    assert world.items()["a"]["last"]["ok"] is True


@pytest.mark.parametrize("skip_orphans", [True, False])
def test_a_child_of_a_failed_parent(world: RunInMemory, skip_orphans: bool) -> None:
    world.source = Source(document("s", tenant_id="acme"))
    options = RunOptions("a test", ("tenant", "subtenant"), skip_orphans=skip_orphans)
    run = world.open(options)
    world.database.sync_steps.insert_one(step_document(run.id, "acme", PERMANENT))
    send_batch(run, replace(BATCH, entity_type="subtenant"), "task-1")
    assert world.hub.keys == ([] if skip_orphans else ["s"])
    assert code(world.steps()["s"]) == ("PARENT_FAILED" if skip_orphans else None)


def test_a_run_that_was_stopped_sends_nothing_and_retries_nothing(world: RunInMemory) -> None:
    world.source = Source(document("new"), document("tried"))
    run = world.open()
    tried = step_document(run.id, "tried", TRANSIENT, attempts=1)
    world.database.sync_steps.insert_one(dict(tried))
    run.stop_switch.stop(StopReason("Stage 1 was down", HUB_UNAVAILABLE))
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
    world.source = Source(*map(document, "abcd"))
    world.hub = Hub(NO_ANSWER, LOCKED_OUT)
    run = world.open()
    result = send_batch(run, BATCH, "task-1")
    assert (result.totals.failed, result.totals.skipped, result.to_retry) == (2, 2, 0)
    assert world.hub.keys == ["a", "b"]
    reason = "INVALID_TOKEN at tenant b: who are you?"
    assert run.stop_switch.reason() == StopReason(reason)
    assert world.trail.stops.reason(run.attempt) == StopReason(reason), "other processes go on"
    steps = world.steps()
    assert told(steps["b"], "state", "http_status") == ("Failed", 200)
    assert steps["c"]["error"]["message"] == f"not sent: {reason}"


def test_an_endpoint_that_stays_down_stops_its_stage_and_not_the_run(world: RunInMemory) -> None:
    world.source = Source(*map(document, "abc"))
    world.hub = Hub(NO_ANSWER, NO_ANSWER, NO_ANSWER)
    run = world.open(
        ADMIN_BREAKER_FAILURES="1", ADMIN_BREAKER_PROBE_MS="1", ADMIN_BREAKER_LIMIT_MS="1"
    )
    send_batch(run, BATCH, "task-1")
    assert world.hub.keys == ["a", "b"]
    reason = world.trail.stops.reason(run.attempt, "tenant")
    assert reason is not None
    assert reason.code == HUB_UNAVAILABLE == code(world.steps()["c"])
    assert run.stop_switch.reason() is None


def test_a_firewall_that_refuses_one_content_fails_one_item(world: RunInMemory) -> None:
    world.source = Source(*map(document, "abc"))
    world.hub = Hub(IN, FORBIDDEN, IN)
    run = world.open()
    result = send_batch(run, BATCH, "task-1")
    assert (result.totals.success, result.totals.failed, result.to_retry) == (2, 1, 0)
    assert world.steps()["b"]["error"] == {
        "code": "HTTP_403",
        "message": "Forbidden",
        "class": "permanent",
    }
    assert run.stop_switch.reason() is None


def test_an_item_that_a_firewall_refuses_in_each_run_stops_none_of_them(
    world: RunInMemory,
) -> None:
    world.source = Source(*map(document, "ab"))
    world.hub = Hub(IN, FORBIDDEN)
    send_batch(world.open(), BATCH, "task-1")
    world.source = Source(document("b"), document("c"))
    world.hub = Hub(FORBIDDEN)
    run = world.open()
    assert send_batch(run, BATCH, "task-2").totals.failed == 1
    assert world.hub.keys == ["b", "c"]
    assert run.stop_switch.reason() is None


def test_an_exception_of_our_own_gives_the_permit_back(world: RunInMemory) -> None:
    world.source = Source(*map(document, "abc"))
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
    world.source = Source(*map(document, "abc"))
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
    world.source = Source(document("a"), document("b"), document("c", name=None))
    world.hub = Hub(REFUSED, NO_ANSWER)
    run = world.open()
    stages: Any = world.trail.stages
    send_batch(run, BATCH, "task-1")
    assert stages.requests == [("tenant", RequestTimes.of([3.0, 8_000.0]))]
    assert world.slots.held_by == [True]
    run.stop_switch.stop(RUN_CANCELLED)
    send_batch(run, BATCH, "task-1")
    assert world.slots.held_by == [True, False]


def ended_at_the_first_request(world: RunInMemory, run: Run, *, is_noticed: bool) -> None:
    """Let somebody else end the run before its first request is answered."""

    def end() -> None:
        world.trail.counting.end_run(run.id, RunStatus.CRASHED, "gone", at(0))
        if is_noticed:
            run.stop_switch.leave(RUN_ENDED)

    world.hub.before = end


@pytest.mark.parametrize("is_here", [True, False])
def test_a_batch_elsewhere_that_outlives_its_run_counts_its_stage(
    world: RunInMemory, is_here: bool
) -> None:
    world.source = Source(document("a"), document("b"))
    run = world.open(is_here=is_here)
    ended_at_the_first_request(world, run, is_noticed=False)
    send_batch(run, BATCH, "task-1")
    record = world.trail.runs.find(run.id)
    assert record is not None
    assert record.totals.success == record.stages[0].total == (0 if is_here else 2)


@pytest.mark.parametrize("is_here", [True, False])
def test_what_stage_1_confirms_after_the_end_of_a_run_is_counted(
    world: RunInMemory, is_here: bool
) -> None:
    world.source = Source(document("a"), document("b"))
    run = world.open(is_here=is_here)
    ended_at_the_first_request(world, run, is_noticed=True)
    with pytest.raises(Abort):
        send_batch(run, BATCH, "task-1")
    world.trail.buffer.flush()
    assert [step["ok"] for step in world.steps().values()] == [True]
    record = world.trail.runs.find(run.id)
    assert record is not None
    assert record.totals.success == record.stages[0].total == 1


@pytest.mark.parametrize("reason", [RUN_ENDED, RUN_SUSPENDED, RUN_TAKEN_OVER, FLOW_RUN_DELETED])
def test_a_run_that_is_left_keeps_what_was_confirmed_and_records_nothing_more(
    world: RunInMemory, reason: LeaveReason
) -> None:
    world.source = Source(document("a"), document("b"), document("c", name=None))
    run = world.open()
    world.hub.before = lambda: run.stop_switch.leave(reason)
    gate = run.gates["tenant"]
    with pytest.raises(Abort, match=reason.message):
        send_batch(run, BATCH, "task-1")
    assert (world.hub.keys, gate.closed_because) == (["a"], reason)
    world.trail.buffer.flush()
    assert {key: step["ok"] for key, step in world.steps().items()} == {"a": True}
    items = world.items()
    assert items["a"]["confirmed"]["run_id"] == run.id
    assert "last" not in items["b"]
    assert "c" not in items


def test_what_is_left_unsent_is_sent_by_the_next_attempt(world: RunInMemory) -> None:
    world.source = Source(*map(document, "abc"))
    earlier = world.open()
    world.hub.before = lambda: earlier.stop_switch.leave(RUN_SUSPENDED)
    with pytest.raises(Abort):
        send_batch(earlier, BATCH, "task-1")
    world.trail.buffer.flush()
    assert send_batch(world.open(), BATCH, "task-2") == batch_result(success=3)
    assert world.hub.keys == ["a", "b", "c"], "what was confirmed is not sent again"


@pytest.mark.parametrize("where", ["here", "in the trail"])
def test_a_run_that_was_left_before_is_not_even_announced(world: RunInMemory, where: str) -> None:
    world.source = Source(document("a"), document("b", name=None))
    run = world.open()
    if where == "here":
        run.stop_switch.leave(RUN_SUSPENDED)
    else:
        world.trail.ownership.suspend(run.id, "", at(1))
    with pytest.raises(Abort, match="suspended"):
        send_batch(run, BATCH, "task-1")
    world.trail.buffer.flush()
    assert (world.hub.sent, world.steps(), world.items()) == ([], {}, {})


def test_a_run_that_was_stopped_and_is_left_then_records_nothing_more(world: RunInMemory) -> None:
    """What it skips would be counted in the attempt that has begun elsewhere."""
    world.source = Source(*map(document, "abc"))
    run = world.open()

    def stopped_and_taken_over() -> None:
        run.stop_switch.stop(RUN_CANCELLED)
        run.stop_switch.leave(RUN_TAKEN_OVER)

    world.hub.before = stopped_and_taken_over
    with suppress(Abort):
        send_batch(run, BATCH, "task-1")
    world.trail.buffer.flush()
    assert world.hub.keys == ["a"]
    assert {key: step["ok"] for key, step in world.steps().items()} == {"a": True}


@pytest.mark.parametrize("is_replaced", [True, False])
def test_a_slot_that_is_lost_is_replaced_as_long_as_the_run_goes_on(
    world: RunInMemory, monkeypatch: pytest.MonkeyPatch, is_replaced: bool
) -> None:
    world.source = Source(*map(document, "abc"))
    run = world.open()
    gate = spied_gate(run)
    lost: list[Any] = []

    def regain(lease: Any) -> Any:
        lost.append(lease)
        assert world.hub.keys == ["a"]
        if is_replaced:
            return Mock(is_valid=True)
        run.stop_switch.stop(RUN_CANCELLED)
        return None

    def lose() -> None:
        world.slots.lease.is_valid = False

    monkeypatch.setattr(world.slots, "regain", regain)
    world.hub.before = lose
    result = send_batch(run, BATCH, "task-1")
    assert lost == [world.slots.lease]
    assert world.hub.keys == (["a", "b", "c"] if is_replaced else ["a"])
    assert gate.abandon.call_count == (0 if is_replaced else 1), "its permit is not given back"
    assert (result.totals.success, result.totals.skipped) == ((3, 0) if is_replaced else (1, 2))


def test_a_run_that_is_left_while_its_slot_is_lost_records_nothing_more(
    world: RunInMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.source = Source(*map(document, "ab"))
    run = world.open()
    world.slots.lease.is_valid = False
    monkeypatch.setattr(world.slots, "regain", lambda _lost: run.stop_switch.leave(RUN_TAKEN_OVER))
    with pytest.raises(Abort, match="anew"):
        send_batch(run, BATCH, "task-1")
    world.trail.buffer.flush()
    assert (world.hub.sent, world.steps()) == ([], {})


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
