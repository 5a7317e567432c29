"""StopSwitch: a run stops for all of its processes, and is left by one of them."""

import asyncio
import logging
from typing import Any
from unittest.mock import Mock

import pytest
from prefect.exceptions import Abort, Pause
from pymongo.database import Database

from tasks.errors import (
    FLOW_RUN_DELETED,
    HUB_UNAVAILABLE,
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
from tasks.stop_switch import StopSwitch
from tasks.trail.stages import RunStatus
from tests.trail_documents import HUB, OPTIONS, at, begin
from tests.unit.tasks.run_in_memory import RunInMemory

Document = dict[str, Any]
SOMEBODY = StopReason("somebody stopped it")
LEAVE_REASONS = [FLOW_RUN_DELETED, RUN_SUSPENDED, RUN_TAKEN_OVER, RUN_ENDED]


@pytest.fixture
def world(
    database: Database[Document], retry: MongoRetry, monkeypatch: pytest.MonkeyPatch
) -> RunInMemory:
    return RunInMemory(database, retry, monkeypatch)


def closed_because(run: Run) -> set[StopReason | None]:
    return {gate.closed_because for gate in run.gates.values()}


def on_record(world: RunInMemory) -> Document:
    (document,) = world.database.sync_runs.find()
    return document


@pytest.mark.parametrize("where", ["here", "elsewhere"])
def test_a_run_that_is_stopped_sends_nothing_more_anywhere(world: RunInMemory, where: str) -> None:
    run = world.open()
    if where == "here":
        assert run.gates["tenant"].is_open(), "it looks at the trail once a second"
        run.stop_switch.stop(SOMEBODY)
    else:
        world.trail.stops.stop(run.attempt, SOMEBODY)
    assert run.stop_switch.reason() == run.gates["tenant"].admit() == SOMEBODY
    assert world.trail.stops.reason(run.attempt) == SOMEBODY
    run.stop_switch.stop(RUN_CANCELLED)
    assert run.stop_switch.reason() == SOMEBODY, "the first reason does not stay"


def test_a_stage_that_is_stopped_sends_nothing_more_and_the_others_go_on(
    world: RunInMemory,
) -> None:
    run, reason = world.open(), StopReason("its endpoint is down", HUB_UNAVAILABLE)
    world.trail.stages.begin(run.attempt, "tenant", HUB, at(0))
    run.stop_switch.stop_stage("tenant", reason)
    assert run.gates["tenant"].admit() == run.stop_switch.reason("tenant") == reason
    assert world.trail.stops.reason(run.attempt, "tenant") == reason
    assert run.stop_switch.reason() is run.stop_switch.reason("client") is None
    assert run.gates["client"].is_open()


@pytest.mark.parametrize("stage", [None, "tenant"])
def test_what_was_stopped_here_is_so_though_the_trail_does_not_know(
    world: RunInMemory, stage: str | None
) -> None:
    run = world.open()
    if stage:
        run.gates[stage].close(SOMEBODY)
    else:
        run.stop_switch.stop(SOMEBODY)
        world.database.sync_runs.update_one({}, {"$set": {"stopped_because": None}})
    assert run.stop_switch.reason(stage) == SOMEBODY


@pytest.mark.parametrize("reason", LEAVE_REASONS)
def test_a_run_that_is_left_goes_on_elsewhere(world: RunInMemory, reason: LeaveReason) -> None:
    run = world.open()
    before = on_record(world)
    run.stop_switch.leave(reason)
    assert closed_because(run) == {reason}
    assert run.stop_switch.left_because == reason
    for stage in (None, "tenant"):
        with pytest.raises(Abort, match=reason.message):
            run.stop_switch.reason(stage)
    assert on_record(world) == before
    assert world.trail.stops.reason(run.attempt) is None


def test_a_run_is_left_once_and_says_so_once(
    world: RunInMemory, caplog: pytest.LogCaptureFixture
) -> None:
    run = world.open()
    with caplog.at_level(logging.WARNING):
        for reason in (RUN_SUSPENDED, RUN_SUSPENDED, RUN_TAKEN_OVER):
            run.stop_switch.leave(reason)
    assert caplog.messages == ["This process leaves the run: the run is suspended"]
    assert run.stop_switch.left_because == RUN_SUSPENDED
    with pytest.raises(Abort, match="suspended"):
        run.stop_switch.reason()


def test_a_run_that_was_stopped_can_still_be_left(world: RunInMemory) -> None:
    run = world.open()
    run.stop_switch.stop(SOMEBODY)
    run.stop_switch.leave(RUN_TAKEN_OVER)
    with pytest.raises(Abort, match="anew"):
        run.stop_switch.reason()


@pytest.mark.parametrize("reason", [SOMEBODY, RUN_CANCELLED])
def test_an_order_to_stop_is_obeyed_by_all(world: RunInMemory, reason: StopReason) -> None:
    run = world.open()
    run.stop_switch.obey(reason)
    assert run.stop_switch.left_because is None
    assert closed_because(run) == {reason}
    assert run.stop_switch.reason() == world.trail.stops.reason(run.attempt) == reason


@pytest.mark.parametrize("reason", LEAVE_REASONS)
def test_an_order_to_leave_is_obeyed_by_this_process_alone(
    world: RunInMemory, reason: LeaveReason
) -> None:
    run = world.open()
    run.stop_switch.obey(reason)
    assert run.stop_switch.left_because == reason
    assert on_record(world)["stopped_because"] is None


@pytest.mark.parametrize(
    ("happening", "reason"),
    [
        ("another attempt", RUN_TAKEN_OVER),
        ("an end", RUN_ENDED),
        ("a suspension", RUN_SUSPENDED),
    ],
)
def test_what_the_trail_says_makes_the_process_leave(
    world: RunInMemory, happening: str, reason: LeaveReason
) -> None:
    run, trail = world.open(), world.trail
    match happening:
        case "another attempt":
            begin(trail.ownership, run.id)
        case "an end":
            trail.counting.end_run(run.id, RunStatus.CRASHED, "gone", at(1))
        case "a suspension":
            trail.ownership.suspend(run.id, "", at(1))
    with pytest.raises(Abort, match=reason.message):
        run.stop_switch.reason()
    assert run.stop_switch.left_because == reason
    assert closed_because(run) == {reason}


def test_a_run_whose_document_is_gone_is_stopped(world: RunInMemory) -> None:
    run = world.open()
    world.database.sync_runs.delete_many({})
    assert run.stop_switch.reason() == StopReason("its document in sync_runs is gone")


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, asyncio.CancelledError])
def test_a_run_that_is_interrupted_stops(world: RunInMemory, error: type[BaseException]) -> None:
    run = world.open()
    with run.stop_switch.thrown_by_errors():
        pass
    assert run.stop_switch.reason() is None
    with pytest.raises(error), run.stop_switch.thrown_by_errors():
        raise error
    interrupted = StopReason(f"the run was interrupted ({error.__name__})")
    assert run.stop_switch.reason() == world.trail.stops.reason(run.attempt) == interrupted


@pytest.mark.parametrize(("signal", "reason"), [(Pause, RUN_SUSPENDED), (Abort, RUN_TAKEN_OVER)])
def test_a_run_that_goes_on_elsewhere_or_later_is_left(
    world: RunInMemory, signal: type[BaseException], reason: LeaveReason
) -> None:
    run = world.open()
    with pytest.raises(signal), run.stop_switch.thrown_by_errors():
        raise signal
    assert run.stop_switch.left_because == reason
    assert closed_because(run) == {reason}
    assert on_record(world)["stopped_because"] is None


def test_who_has_left_a_run_keeps_the_reason(world: RunInMemory) -> None:
    run = world.open()
    run.stop_switch.leave(FLOW_RUN_DELETED)
    with pytest.raises(Abort), run.stop_switch.thrown_by_errors():
        run.stop_switch.reason()
    assert run.stop_switch.left_because == FLOW_RUN_DELETED


def test_a_run_that_can_not_say_that_it_was_interrupted_still_stops(world: RunInMemory) -> None:
    run = world.open()
    stops = Mock(**{"stop.side_effect": MongoUnavailable("away"), "reason.return_value": None})
    switch = StopSwitch(run.attempt, stops, run.gates)
    with pytest.raises(ValueError, match="the cause"), switch.thrown_by_errors():
        raise ValueError("the cause")
    assert stops.stop.call_count == 1
    assert not any(gate.is_open() for gate in run.gates.values())
    assert switch.reason() == StopReason("the run was interrupted (ValueError)")


def test_what_an_earlier_attempt_stops_stays_open_for_the_later_one(world: RunInMemory) -> None:
    earlier, later = world.open(), world.open()
    assert (earlier.attempt.number, later.attempt.number) == (1, 2)
    earlier.stop_switch.stop(SOMEBODY)
    earlier.stop_switch.stop_stage("tenant", SOMEBODY)
    assert later.stop_switch.reason() is later.stop_switch.reason("tenant") is None
    assert later.options == OPTIONS
    assert all(gate.is_open() for gate in later.gates.values())
