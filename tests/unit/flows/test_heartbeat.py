"""Heartbeat: a run keeps its turn, and obeys what Prefect and the trail say of it."""

import asyncio
import time
from collections.abc import Callable
from typing import Any
from unittest.mock import Mock

import httpx
import pytest
from prefect.client.schemas.objects import State
from prefect.exceptions import Pause
from prefect.states import Cancelled, Cancelling, Completed, Crashed, Pending, Suspended
from pymongo.database import Database

from flows import heartbeat as module
from flows.heartbeat import heartbeat
from tasks.errors import (
    FLOW_RUN_DELETED,
    RUN_CANCELLED,
    RUN_ENDED,
    RUN_SUSPENDED,
    RUN_TAKEN_OVER,
    LeaveReason,
    StopReason,
)
from tasks.mongo import MongoRetry
from tasks.mongo_errors import MongoUnavailable
from tasks.run import Run
from tasks.trail.ownership import Ownership
from tasks.trail.stages import RunStatus
from tests.trail_documents import at, begin
from tests.unit.flows.prefect_in_memory import FLOW_RUN, Prefect
from tests.unit.tasks.run_in_memory import RunInMemory

Document = dict[str, Any]
PATIENCE = 20.0
SUSPENDED: State[Any] = Suspended(timestamp=at(30))
LEFT = [
    (Pending(timestamp=at(30)), RUN_TAKEN_OVER),
    (None, FLOW_RUN_DELETED),
]


@pytest.fixture
def world(
    database: Database[Document], retry: MongoRetry, monkeypatch: pytest.MonkeyPatch
) -> RunInMemory:
    return RunInMemory(database, retry, monkeypatch)


@pytest.fixture
def logger() -> Mock:
    return Mock()


@pytest.fixture
def prefect(monkeypatch: pytest.MonkeyPatch, logger: Mock) -> Prefect:
    prefect = Prefect()
    context = Mock(flow_run=prefect.flow_run(), parameters={})
    monkeypatch.setattr("flows.state_mirror.FlowRunContext", Mock(get=lambda: context))
    parts: dict[str, Any] = {
        "BEAT_SECONDS": 0.001,
        "end_dead_runs": lambda _settings: [],
        "get_client": lambda: prefect,
        "get_run_logger": lambda: logger,
    }
    for name, part in parts.items():
        monkeypatch.setattr(module, name, part)
    return prefect


@pytest.fixture
def run(world: RunInMemory, prefect: Prefect, database: Database[Document]) -> Run:
    """A run of the flow run that Prefect knows."""
    assert prefect.state is not None
    run = world.open()
    database.sync_runs.update_one({}, {"$set": {"flow_run_id": str(FLOW_RUN)}})
    return run


def is_closed(run: Run) -> bool:
    return run.gates["tenant"].closed_because is not None


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.001)


def beat(run: Run, until: Callable[[], bool], then: BaseException | None = None) -> None:
    """Let the heart beat until something is so."""

    async def block() -> None:
        async with heartbeat(run):
            await asyncio.to_thread(wait_until, until)
            if then is not None:
                raise then

    asyncio.run(block())


def status_of(run: Run) -> RunStatus:
    record = run.trail.runs.find(run.id)
    assert record is not None
    return record.status


def test_a_run_shows_that_it_lives_and_goes_on(
    world: RunInMemory, prefect: Prefect, run: Run, logger: Mock
) -> None:
    def is_heard_of() -> bool:
        (document,) = world.database.sync_runs.find()
        return "alive_at" in document

    for _ in range(2):
        world.database.sync_runs.update_one({}, {"$unset": {"alive_at": True}})
        beat(run, lambda: is_heard_of() and prefect.looks > 2)
    assert run.stop_switch.reason() is None
    assert logger.warning.call_count == 0


@pytest.mark.parametrize("state", [Cancelling(timestamp=at(30)), Cancelled(timestamp=at(30))])
def test_a_run_that_is_cancelled_stops_everywhere(
    prefect: Prefect, run: Run, state: State[Any]
) -> None:
    prefect.state = state
    beat(run, lambda: is_closed(run))
    assert run.stop_switch.reason() == run.trail.stops.reason(run.attempt) == RUN_CANCELLED
    assert run.trail.ownership.keep(run.attempt), "it ends itself"


@pytest.mark.parametrize("state", [Completed(timestamp=at(30)), Crashed(timestamp=at(30))])
def test_an_end_that_somebody_else_has_noted_is_no_order(
    prefect: Prefect, run: Run, state: State[Any]
) -> None:
    prefect.state = state
    beat(run, lambda: prefect.looks > 2)
    assert run.stop_switch.reason() is None
    assert status_of(run) is RunStatus.RUNNING


@pytest.mark.parametrize(("state", "reason"), LEFT, ids=["pending", "deleted"])
def test_a_run_that_goes_on_elsewhere_is_left(
    prefect: Prefect, run: Run, state: State[Any] | None, reason: LeaveReason
) -> None:
    prefect.state = state
    beat(run, lambda: is_closed(run))
    assert run.stop_switch.left_because == reason
    assert status_of(run) is RunStatus.RUNNING
    assert run.trail.ownership.holder() == run.id


def test_a_run_that_is_suspended_is_left_and_gives_its_turn_up(prefect: Prefect, run: Run) -> None:
    prefect.state = SUSPENDED
    beat(run, lambda: is_closed(run) and run.trail.ownership.holder() is None)
    assert run.stop_switch.left_because == RUN_SUSPENDED
    assert is_closed(run)
    assert status_of(run) is RunStatus.PENDING


def test_a_run_that_is_suspended_gives_its_turn_up_though_its_work_ends_at_once(
    prefect: Prefect, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    obey = run.stop_switch.obey

    def obey_late(reason: StopReason) -> None:
        obey(reason)
        time.sleep(0.1)  # the block ends meanwhile

    monkeypatch.setattr(run.stop_switch, "obey", obey_late)
    prefect.state = SUSPENDED
    beat(run, lambda: is_closed(run))
    assert run.trail.ownership.holder() is None


@pytest.mark.parametrize("reason", [RUN_TAKEN_OVER, RUN_ENDED, RUN_SUSPENDED])
def test_a_run_that_is_no_longer_its_own_is_left_though_prefect_knows_nothing(
    prefect: Prefect, run: Run, reason: StopReason
) -> None:
    assert prefect.state is not None
    trail = run.trail
    if reason == RUN_TAKEN_OVER:
        begin(trail.ownership, run.id)
    elif reason == RUN_ENDED:
        trail.counting.end_run(run.id, RunStatus.CRASHED, "gone", at(1))
    else:
        trail.ownership.suspend(run.id, "", at(1))
    beat(run, lambda: run.stop_switch.left_because is not None)
    assert run.stop_switch.left_because == reason


def test_a_run_whose_document_is_gone_stops(world: RunInMemory, prefect: Prefect, run: Run) -> None:
    assert prefect.state is not None
    world.database.sync_runs.delete_many({})
    beat(run, lambda: is_closed(run))
    assert run.stop_switch.left_because is None


def test_a_mongodb_that_is_away_for_a_moment_ends_no_heartbeat(
    prefect: Prefect, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert prefect.state is not None
    answers: list[Any] = [MongoUnavailable("away"), True, MongoUnavailable("away"), True]
    keep = Mock(side_effect=lambda _attempt: answer(answers))

    def answer(answers: list[Any]) -> bool:
        told = answers.pop(0) if answers else True
        if isinstance(told, Exception):
            raise told
        return bool(told)

    monkeypatch.setattr(Ownership, "keep", lambda _self, attempt: keep(attempt))
    beat(run, lambda: keep.call_count > 5)
    keep.assert_called_with(run.attempt)
    assert not is_closed(run)


def test_a_prefect_that_is_away_for_a_moment_is_asked_again(prefect: Prefect, run: Run) -> None:
    def fail() -> None:
        raise httpx.ConnectError("away")

    def cancel() -> None:
        prefect.state = Cancelling(timestamp=at(30))

    prefect.at_looks = {1: fail, 2: fail, 3: cancel}
    beat(run, lambda: is_closed(run))
    assert run.stop_switch.reason() == RUN_CANCELLED


def test_a_sweep_that_fails_is_told_and_ends_no_run(
    prefect: Prefect, run: Run, logger: Mock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "end_dead_runs", Mock(side_effect=httpx.ConnectError("away")))
    beat(run, lambda: prefect.looks > 2)
    assert logger.warning.call_count == 1
    assert "Prefect does not answer (ConnectError)" in str(logger.warning.call_args)
    assert not is_closed(run)


@pytest.mark.parametrize("is_away", [False, True])
def test_a_pause_suspends_the_run_at_once(prefect: Prefect, run: Run, is_away: bool) -> None:
    """Prefect raises it in the flow, perhaps before the next look."""

    def pause() -> bool:
        prefect.state = SUSPENDED
        if is_away:
            prefect.at_looks = dict.fromkeys(range(1, 1_000), fail)
        return True

    def fail() -> None:
        raise httpx.ConnectError("away")

    with pytest.raises(Pause):
        beat(run, pause, then=Pause(state=prefect.state))
    if not is_away:
        assert run.stop_switch.left_because == RUN_SUSPENDED
        assert status_of(run) is RunStatus.PENDING
        assert run.trail.ownership.holder() is None
