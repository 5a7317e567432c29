"""StepBuffer: every step gets written, in order, whatever MongoDB refuses in between."""

import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any
from unittest.mock import Mock

import pytest
from bson import ObjectId
from pymongo import MongoClient
from pymongo.database import Database
from pymongo.errors import BulkWriteError, WriteError

from tasks.mongo import MongoRetry
from tasks.mongo_errors import MongoRefused, MongoUnavailable
from tasks.trail.item_writes import confirmation_of, failure_of
from tasks.trail.items import ItemWrite
from tasks.trail.step_buffer import SECONDS_BEHIND, STEPS_BEHIND, StepBuffer
from tests.trail_documents import (
    PERMANENT,
    RUN,
    TRANSIENT,
    at,
    confirmed,
    failure,
    item_key,
    live_counts,
    new_step,
)

Document = dict[str, Any]
PATIENCE = 30
NEVER = {"never": {"$exists": True}}


@pytest.fixture
def buffer(database: Database[Document], retry: MongoRetry) -> StepBuffer:
    live = live_counts(database, retry)
    return StepBuffer(database.sync_steps, database.sync_items, live, retry)


def take(database: Database[Document], validator: Document, collection: str = "sync_steps") -> None:
    """Let a collection take only documents that match."""
    database.command("collMod", collection, validator=validator)


def refused(natural_key: str, seconds: float = 0) -> ItemWrite:
    last = failure(PERMANENT, RUN, seconds)
    return failure_of(item_key(natural_key), 1, last, requests=1, not_taken=None)


def written(database: Database[Document]) -> list[Any]:
    return [step["source_id"] for step in database.sync_steps.find().sort("_id")]


def are_written(database: Database[Document], count: int) -> bool:
    return len(written(database)) == count


def soon(condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + PATIENCE
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.05)
    return condition()


def test_steps_wait_until_they_are_enough(
    database: Database[Document], buffer: StepBuffer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tasks.trail.step_buffer.SECONDS_BEHIND", 60.0)
    run_id = ObjectId()
    for number in range(STEPS_BEHIND - 1):
        buffer.record(new_step(run_id, number))
    assert written(database) == []
    buffer.record(new_step(run_id, STEPS_BEHIND - 1))
    assert written(database) == list(range(STEPS_BEHIND))


def test_a_step_waits_a_second_at_most(database: Database[Document], buffer: StepBuffer) -> None:
    for count in (1, 2):
        recorded_at = time.monotonic()
        buffer.record(new_step(ObjectId()))
        assert soon(partial(are_written, database, count))
        assert time.monotonic() - recorded_at >= SECONDS_BEHIND / 2


def test_a_flush_writes_what_waits_of_all_threads(
    database: Database[Document], buffer: StepBuffer
) -> None:
    run_id = ObjectId()
    with ThreadPoolExecutor(8) as threads:
        for number in range(3 * STEPS_BEHIND):
            threads.submit(buffer.record, new_step(run_id, number))
    buffer.flush()
    assert sorted(written(database)) == list(range(3 * STEPS_BEHIND))


def test_the_later_of_two_steps_of_an_item_stays(
    database: Database[Document], buffer: StepBuffer
) -> None:
    run_id = ObjectId()
    buffer.record(new_step(run_id, error=TRANSIENT, attempts=1))
    buffer.record(new_step(run_id, attempts=2))
    buffer.flush()
    (step,) = database.sync_steps.find()
    assert (step["ok"], step["attempts"]) == (True, 2)


def test_an_earlier_attempt_of_the_run_overwrites_nothing(
    database: Database[Document], buffer: StepBuffer
) -> None:
    run_id = ObjectId()
    buffer.record(new_step(run_id, 1, run_attempt=2))
    buffer.flush()
    for number in (1, 2):
        buffer.record(new_step(run_id, number, run_attempt=1, error=PERMANENT))
    buffer.flush()
    first, second = database.sync_steps.find().sort("source_id")
    assert (first["ok"], first["run_attempt"]) == (True, 2)
    assert (second["ok"], second["run_attempt"]) == (False, 1), "one step kept the other out"


def test_while_mongodb_refuses_steps_wait_and_the_next_flush_writes_them_in_order(
    database: Database[Document], buffer: StepBuffer
) -> None:
    run_id = ObjectId()
    take(database, NEVER)
    buffer.record(new_step(run_id, 1, error=TRANSIENT))
    with pytest.raises(MongoRefused, match="validator"):
        buffer.flush()
    buffer.record(new_step(run_id, 2))
    buffer.record(new_step(run_id, 1))
    with pytest.raises(MongoRefused):
        buffer.flush()
    take(database, {})
    buffer.flush()
    first, second = database.sync_steps.find().sort("_id")
    assert (first["source_id"], first["ok"]) == (1, True), "an older step was written last"
    assert (second["source_id"], second["ok"]) == (2, True)


def test_a_step_that_is_recorded_while_a_write_fails_comes_after(
    database: Database[Document], retry: MongoRetry
) -> None:
    run_id, steps = ObjectId(), Mock()
    buffer = StepBuffer(steps, Mock(), Mock(), retry)

    def fail(*_: Any, **__: Any) -> None:
        buffer.record(new_step(run_id, attempts=2))
        raise WriteError("no", 121, {"code": 121})

    steps.bulk_write.side_effect = fail
    buffer.record(new_step(run_id, error=TRANSIENT, attempts=1))
    with pytest.raises(MongoRefused):
        buffer.flush()
    steps.bulk_write.side_effect = database.sync_steps.bulk_write
    buffer.flush()
    (step,) = database.sync_steps.find()
    assert (step["attempts"], step["ok"]) == (2, True)


def test_one_step_that_is_refused_keeps_no_other_out(
    database: Database[Document], buffer: StepBuffer
) -> None:
    take(database, {"natural_key": {"$ne": "2"}})
    run_id = ObjectId()
    for number in (1, 2, 3):
        buffer.record(new_step(run_id, number))
    with pytest.raises(MongoRefused):
        buffer.flush()
    assert sorted(written(database)) == [1, 3]
    take(database, {})
    buffer.flush()
    assert sorted(written(database)) == [1, 2, 3]


def test_items_are_written_after_their_steps(
    database: Database[Document], buffer: StepBuffer
) -> None:
    run_id = ObjectId()
    take(database, NEVER, "sync_items")
    buffer.record(new_step(run_id, 1), refused("a"))
    with pytest.raises(MongoRefused):
        buffer.flush()
    assert written(database) == [1]
    take(database, NEVER)
    take(database, {}, "sync_items")
    buffer.record(new_step(run_id, 2), refused("b"))
    with pytest.raises(MongoRefused):
        buffer.flush()
    assert database.sync_items.count_documents({}) == 0, "an item was written without its step"
    take(database, {})
    buffer.flush()
    assert written(database) == [1, 2]
    assert sorted(database.sync_items.distinct("natural_key")) == ["a", "b"]


def test_the_later_of_two_outcomes_of_an_item_stays(
    database: Database[Document], buffer: StepBuffer
) -> None:
    run_id = ObjectId()
    buffer.record(new_step(run_id, error=TRANSIENT, attempts=1), refused("1", seconds=1))
    last = confirmed("r", run_id=run_id, at=at(2))
    buffer.record(new_step(run_id, attempts=2), confirmation_of(item_key("1"), 1, last, None))
    buffer.flush()
    (item,) = database.sync_items.find()
    assert item["last"]["ok"] is True
    assert "not_in_since" not in item


def test_a_step_without_an_item_writes_none(
    database: Database[Document], buffer: StepBuffer
) -> None:
    run_id = ObjectId()
    buffer.record(new_step(run_id, 1))
    buffer.record(new_step(run_id, 2), refused("2"))
    buffer.flush()
    assert written(database) == [1, 2]
    assert database.sync_items.distinct("natural_key") == ["2"]


def test_an_item_that_says_nothing_new_keeps_no_other_out(
    database: Database[Document], buffer: StepBuffer
) -> None:
    """Its filter keeps it from being written over: what comes of that is a collision."""
    run_id = ObjectId()
    last = confirmed("r", run_id=RUN)
    buffer.record(new_step(run_id, 1), confirmation_of(item_key("in"), 1, last, None))
    buffer.flush()
    not_sent = failure_of(item_key("in"), 2, failure(), requests=0, not_taken=None)
    buffer.record(new_step(run_id, 2), not_sent)
    buffer.record(new_step(run_id, 3), refused("other"))
    buffer.flush()
    assert database.sync_items.find_one({"natural_key": "in"}, {"last.ok": 1})["last"]["ok"]
    assert database.sync_items.count_documents({}) == 2


class Contended:
    """A collection in which the last step of a write collides with that of another process."""

    def __init__(self, database: Database[Document], collisions: int) -> None:
        self._steps = database.sync_steps
        self._collisions = collisions
        self.writes: list[int] = []

    def bulk_write(self, steps: list[Any], *, ordered: bool) -> None:
        assert not ordered
        self.writes.append(len(steps))
        if len(self.writes) > self._collisions:
            self._steps.bulk_write(steps, ordered=ordered)
            return
        *others, _ = steps
        if others:
            self._steps.bulk_write(others, ordered=False)
        fault = {
            "index": len(others),
            "code": 11000,
            "errmsg": "E11000 duplicate key error collection",
        }
        raise BulkWriteError({"writeErrors": [fault], "writeConcernErrors": []})


@pytest.mark.parametrize(("collisions", "is_written"), [(1, True), (2, False)])
def test_a_step_that_collides_gets_a_second_try(
    database: Database[Document], retry: MongoRetry, collisions: int, is_written: bool
) -> None:
    contended = Contended(database, collisions)
    buffer = StepBuffer(contended, database.sync_items, Mock(), retry)  # type: ignore[arg-type]
    run_id = ObjectId()
    for number in (1, 2):
        buffer.record(new_step(run_id, number))
    buffer.flush()
    assert contended.writes == [2, 1]
    assert written(database) == ([1, 2] if is_written else [1])


def test_a_collision_in_a_write_that_is_not_durable_is_no_success(retry: MongoRetry) -> None:
    collision = {"index": 0, "code": 11000, "errmsg": ""}
    lost = {"code": 64, "codeName": "WriteConcernFailed", "errmsg": "timed out"}
    told = BulkWriteError({"writeErrors": [collision], "writeConcernErrors": [lost]})
    steps = Mock(bulk_write=Mock(side_effect=told))
    buffer = StepBuffer(steps, Mock(), Mock(), retry)
    buffer.record(new_step(ObjectId()))
    for writes in (1, 2):
        with pytest.raises(MongoRefused):
            buffer.flush()
        assert steps.bulk_write.call_count == writes, "the step waits no more"


def test_a_mongodb_that_is_away_is_told_by_the_timer_and_by_a_flush(
    caplog: pytest.LogCaptureFixture,
) -> None:
    uri = "mongodb://user:marked@127.0.0.1:9"
    with (
        caplog.at_level(logging.WARNING),
        MongoClient[Document](uri, connect=False, serverSelectionTimeoutMS=10) as client,
    ):
        steps, items = client["backoffice"]["sync_steps"], client["backoffice"]["sync_items"]
        buffer = StepBuffer(steps, items, Mock(), MongoRetry(client, seconds=0))
        buffer.record(new_step(ObjectId()))
        assert soon(lambda: caplog.messages != [])
        with pytest.raises(MongoUnavailable):
            buffer.flush()
    (told,) = caplog.messages
    assert told.startswith("The audit trail is behind, MongoDB does not take steps: MongoDB does")
    assert "marked" not in told
