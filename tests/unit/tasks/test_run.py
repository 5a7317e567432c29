"""A run in a process: what it knows of itself, what it holds open, and how it stops."""

import asyncio
from dataclasses import replace
from typing import Any
from unittest.mock import MagicMock, Mock

import pytest
from bson import ObjectId
from pymongo.database import Database

from tasks.entities import entity_type_named
from tasks.errors import RUN_CANCELLED, StopReason
from tasks.mongo import MongoRetry
from tasks.mongo_errors import MongoUnavailable
from tasks.run import flow_run_of, run_here, run_of
from tasks.settings import SettingsError, read_settings
from tasks.source.item import Item
from tasks.trail.runs import RunAttempt, RunOptions, SyncMode
from tests.trail_documents import PERMANENT, TRANSIENT, step_document
from tests.unit.tasks.run_in_memory import BATCH, RunInMemory, Source, tenant

Document = dict[str, Any]


@pytest.fixture
def world(
    database: Database[Document], retry: MongoRetry, monkeypatch: pytest.MonkeyPatch
) -> RunInMemory:
    return RunInMemory(database, retry, monkeypatch)


@pytest.fixture
def attempt(world: RunInMemory, monkeypatch: pytest.MonkeyPatch) -> RunAttempt:
    """An attempt that a process elsewhere works on."""
    monkeypatch.setattr("tasks.run.slots_of_process", lambda: world.slots)
    return world.open().attempt


def test_a_run_is_what_was_asked_for(world: RunInMemory) -> None:
    options = RunOptions("REST API", ("client",), SyncMode.CHANGED, dry_run=True)
    run = world.open(options, is_here=False)
    assert (run.options, run.flow_run_id, run.is_here) == (options, "a flow run", False)
    assert run.attempt == RunAttempt(run.id, 1)
    assert run.stopped_because() is None


@pytest.mark.parametrize("where", ["here", "elsewhere"])
def test_a_run_that_is_stopped_sends_nothing_more_anywhere(world: RunInMemory, where: str) -> None:
    run = world.open()
    reason = StopReason("somebody stopped it")
    if where == "here":
        assert run.gate.is_open(), "it looks at the trail once a second"
        run.stop(reason)
    else:
        world.trail.stops.stop(run.id, reason)
    assert run.stopped_because() == run.gate.admit() == reason
    assert world.trail.stops.reason(run.attempt) == reason
    run.cancel()
    assert run.stopped_because() == reason, "the first reason does not stay"


def test_a_run_that_is_cancelled_says_so(world: RunInMemory) -> None:
    run = world.open()
    run.cancel()
    assert run.stopped_because() == world.trail.stops.reason(run.attempt) == RUN_CANCELLED


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, asyncio.CancelledError])
def test_a_run_that_is_interrupted_stops(world: RunInMemory, error: type[BaseException]) -> None:
    run = world.open()
    with run.stopping_on_error():
        pass
    assert run.stopped_because() is None
    with pytest.raises(error), run.stopping_on_error():
        raise error
    assert run.stopped_because() == StopReason(f"the run was interrupted ({error.__name__})")


def test_a_run_that_can_not_say_that_it_was_interrupted_still_stops(world: RunInMemory) -> None:
    run = world.open()
    run.trail = replace(run.trail, stops=Mock(**{"stop.side_effect": MongoUnavailable("away")}))
    with pytest.raises(ValueError, match="the cause"), run.stopping_on_error():
        raise ValueError("the cause")
    assert not run.gate.is_open()


def test_items_come_with_their_step_in_this_run(world: RunInMemory) -> None:
    world.source = Source(tenant("new"), tenant("tried"))
    run = world.open()
    assert [prior for _, prior in run.items(BATCH)] == [None, None]
    world.database.sync_steps.insert_many(
        [
            step_document(run.id, "tried", TRANSIENT, attempts=2),
            step_document(ObjectId(), "new", TRANSIENT),
        ]
    )
    (new, no_step), (tried, prior) = run.items(BATCH)
    assert (new, tried) == world.source.items
    assert no_step is None
    assert prior is not None
    assert (prior.error, prior.attempts, prior.run_attempt) == (TRANSIENT, 2, 1)


def test_an_outcome_is_recorded_with_what_is_known(world: RunInMemory) -> None:
    run = world.open()
    valid, invalid = tenant("valid", version=7), tenant("invalid", version=8, name=None)
    assert isinstance(valid, Item)
    run.record(valid, None, attempts=1, sync_id="s")
    run.record(invalid, PERMANENT)
    run.trail.buffer.flush()
    steps = world.steps()
    assert (steps["valid"]["request_id"], steps["invalid"]["request_id"]) == (
        valid.request_id,
        None,
    )
    for step, version, attempts in ((steps["valid"], 7, 1), (steps["invalid"], 8, 0)):
        assert (step["run_id"], step["run_attempt"], step["version"]) == (run.id, 1, version)
        assert (step["flow_run_id"], step["entity_type"]) == ("a flow run", "tenant")
        assert step["attempts"] == attempts


@pytest.mark.parametrize(
    ("skip_orphans", "failed"),
    [(False, {}), (True, {"tenant": {"acme"}, "subtenant": set(), "client": set()})],
)
def test_children_of_failed_parents_are_known_where_they_are_not_sent(
    world: RunInMemory, skip_orphans: bool, failed: dict[str, set[str]]
) -> None:
    run = world.open(RunOptions("a test", ("domain",), skip_orphans=skip_orphans))
    world.database.sync_steps.insert_one(step_document(run.id, "acme", PERMANENT))
    domain = entity_type_named("domain")
    assert run.failed_parents(domain) == failed
    world.database.sync_steps.delete_many({})
    assert run.failed_parents(domain) == failed, "they were looked up again"


def test_a_run_that_is_closed_leaves_nothing_behind(world: RunInMemory) -> None:
    run = world.open()
    run.record(tenant("a"), None)
    run.close()
    assert world.hub.is_closed
    assert world.slots.are_released
    assert set(world.steps()) == {"a"}


def test_a_process_elsewhere_opens_an_attempt_once(world: RunInMemory, attempt: RunAttempt) -> None:
    run = run_of(attempt)
    assert run_of(RunAttempt(attempt.run_id, attempt.number)) is run
    assert (run.is_here, run.id) == (False, attempt.run_id)
    following = world.trail.runs.begin_attempt(attempt.run_id)
    assert run_of(following).attempt == following


def test_an_attempt_that_can_not_be_opened(
    attempt: RunAttempt, monkeypatch: pytest.MonkeyPatch
) -> None:
    unknown = RunAttempt(ObjectId(), 1)
    with pytest.raises(LookupError, match=f"sync_runs has no run {unknown.run_id}"):
        run_of(unknown)
    monkeypatch.delenv("ADMIN_SYNC_TOKEN")
    with pytest.raises(SettingsError, match="ADMIN_SYNC_TOKEN is missing"):
        run_of(attempt)


def test_a_flow_run_holds_its_run_open_until_it_ends_however_it_does(
    world: RunInMemory, attempt: RunAttempt, monkeypatch: pytest.MonkeyPatch
) -> None:
    slots = Mock()
    monkeypatch.setattr("tasks.run.SyncClientContext", MagicMock())
    monkeypatch.setattr("tasks.run.Slots", lambda _client: slots)

    settings = read_settings()

    def flow() -> None:
        with flow_run_of(attempt, settings) as run:
            assert run_here(attempt.run_id) is run is run_of(attempt)
            assert run.is_here
            run.record(tenant("a"), None)
            raise InterruptedError

    with pytest.raises(InterruptedError):
        flow()
    slots.limit_to.assert_called_once_with(3)
    slots.release_idle.assert_called_once_with()
    assert world.hub.is_closed
    assert set(world.steps()) == {"a"}
    with pytest.raises(KeyError):
        run_here(attempt.run_id)
