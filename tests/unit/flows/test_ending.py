"""The end of stages and runs: on record, and as Prefect states."""

import asyncio
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta
from typing import Any
from unittest.mock import MagicMock, Mock

import pytest
from prefect.client.schemas.objects import State
from prefect.exceptions import Abort, Pause, TerminationSignal
from prefect.states import Cancelled, Cancelling, Completed, Failed, Running
from pymongo.database import Database

from flows.conclusion import SyncIncomplete
from flows.ending import end_run, end_stage, ended_on_record, raise_unless_ended
from tasks.errors import (
    FLOW_RUN_DELETED,
    RUN_CANCELLED,
    RUN_SUSPENDED,
    RUN_TAKEN_OVER,
    LeaveReason,
    StopReason,
)
from tasks.mongo import MongoRetry
from tasks.trail.stages import RunStatus, StageTotals, Tally
from tests.trail_documents import HUB, OPTIONS, TRANSIENT, at, step_document
from tests.unit.tasks.run_in_memory import RunInMemory

Document = dict[str, Any]
MILLISECOND = timedelta(milliseconds=1)
ALL_IN = Tally(StageTotals(total=3, success=3))
ONE_FAILED = Tally(StageTotals(total=2, success=1, failed=1), {"TIMEOUT": 1})


@pytest.fixture
def world(
    database: Database[Document], retry: MongoRetry, monkeypatch: pytest.MonkeyPatch
) -> RunInMemory:
    return RunInMemory(database, retry, monkeypatch)


def test_a_stage_ends_on_record_as_its_state_says(world: RunInMemory) -> None:
    state = end_stage(world.open(), "client", ONE_FAILED)
    assert (state.name, state.message) == ("Partial", "1 of 2 items failed: TIMEOUT (1)")
    (document,) = world.database.sync_runs.find()
    tenants, clients = document["stages"]
    assert tenants["status"] == "pending"
    assert clients["status"] == "partial"
    assert abs(clients["finished_at"] - state.timestamp) < MILLISECOND
    assert (clients["total"], clients["success"], clients["failed"]) == (2, 1, 1)


def test_a_run_is_the_sum_of_its_stages(world: RunInMemory) -> None:
    run = world.open()
    end_stage(run, "tenant", ALL_IN)
    end_stage(run, "client", ONE_FAILED)
    state = end_run(run)
    assert (state.name, state.message) == ("Partial", "1 of 5 items failed: TIMEOUT (1)")


def test_a_run_that_was_stopped_says_why(world: RunInMemory) -> None:
    run = world.open()
    run.stop_switch.stop(StopReason("Stage 1 was down"))
    end_stage(run, "tenant", ONE_FAILED)
    state = end_run(run)
    assert state.name == "Stopped"
    assert state.message == "Stopped by Stage 1 was down. 1 of 2 items failed: TIMEOUT (1)"


@pytest.fixture
def published(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The flow runs whose results were published; one runs here."""
    published: list[Any] = []
    monkeypatch.setattr("flows.ending.current_flow_run", lambda: "the flow run")
    monkeypatch.setattr(
        "flows.ending.publish_results_of", lambda flow_run, _settings: published.append(flow_run)
    )
    return published


def test_a_run_that_was_cancelled_ends_on_record_at_once(
    world: RunInMemory, published: list[Any]
) -> None:
    run = world.open()
    end_stage(run, "tenant", ALL_IN)
    world.trail.stages.begin(run.attempt, "client", HUB, at(1))
    run.stop_switch.stop(RUN_CANCELLED)
    state = end_run(run)
    assert (state.is_cancelled(), state.message) == (True, "Cancelled: 3 of 3 items are in")
    record = world.trail.runs.find(run.id)
    assert record is not None
    assert (record.status, record.message) == (RunStatus.CANCELLED, state.message)
    assert [stage.status for stage in record.stages] == ["success", "cancelled"]
    assert published == ["the flow run"]
    assert world.trail.ownership.holder() is None


def test_a_run_that_was_not_cancelled_ends_as_prefect_says(
    world: RunInMemory, published: list[Any]
) -> None:
    run = world.open()
    end_stage(run, "tenant", ONE_FAILED)
    end_run(run)
    record = world.trail.runs.find(run.id)
    assert record is not None
    assert (record.status, published) == (RunStatus.RUNNING, [])


def test_a_run_counts_what_only_earlier_attempts_were_asked_for(world: RunInMemory) -> None:
    earlier = world.open()
    world.trail.stages.begin(earlier.attempt, "client", HUB, at(1))
    world.database.sync_steps.insert_one(
        step_document(earlier.id, 1, TRANSIENT, entity_type="client")
    )
    end_stage(earlier, "client", ONE_FAILED)
    run = world.open(replace(OPTIONS, entities=("tenant",)))
    end_stage(run, "tenant", ALL_IN)
    assert end_run(run).message == "1 of 4 items failed: TIMEOUT (1)"


@pytest.mark.parametrize("reason", [RUN_SUSPENDED, FLOW_RUN_DELETED])
def test_a_run_that_is_left_ends_elsewhere(world: RunInMemory, reason: LeaveReason) -> None:
    run = world.open()
    world.trail.stages.begin(run.attempt, "tenant", HUB, at(1))
    run.stop_switch.leave(reason)
    before = world.trail.runs.find(run.id)
    for end in (lambda: end_stage(run, "tenant", ALL_IN), lambda: end_run(run)):
        with pytest.raises(Abort, match=reason.message):
            end()
    assert world.trail.runs.find(run.id) == before


def test_an_earlier_attempt_ends_nothing(world: RunInMemory, published: list[Any]) -> None:
    earlier, later = world.open(), world.open()
    world.trail.stages.begin(later.attempt, "tenant", HUB, at(1))
    before = world.trail.runs.find(later.id)
    earlier.stop_switch.stop(RUN_CANCELLED)
    for end in (lambda: end_stage(earlier, "tenant", ALL_IN), lambda: end_run(earlier)):
        with pytest.raises(Abort):
            end()
    assert world.trail.runs.find(later.id) == before
    assert published == []


@pytest.mark.usefixtures("published")
def test_an_attempt_that_is_taken_over_while_it_ends_ends_nothing(world: RunInMemory) -> None:
    """The other one begins after this one was asked why it stops."""
    run = world.open()
    run.stop_switch.stop(RUN_CANCELLED)
    reason = run.stop_switch.reason

    def overtaken(entity_type: str | None) -> StopReason | None:
        answer = reason(entity_type)
        world.open()
        return answer

    run.stop_switch.reason = overtaken  # type: ignore[method-assign, assignment]
    with suppress(Abort):
        end_run(run)
    record = world.trail.runs.find(run.id)
    assert record is not None
    assert (record.attempt, record.status) == (2, RunStatus.RUNNING)


@pytest.mark.parametrize(
    ("reason", "status"),
    [
        (FLOW_RUN_DELETED, RunStatus.CANCELLED),
        (RUN_SUSPENDED, RunStatus.RUNNING),
        (RUN_TAKEN_OVER, RunStatus.RUNNING),
    ],
)
def test_a_run_whose_flow_run_was_deleted_is_ended_by_its_process(
    world: RunInMemory, reason: LeaveReason, status: RunStatus
) -> None:
    run = world.open()
    run.stop_switch.leave(reason)
    with pytest.raises(Abort), ended_on_record(run):
        run.stop_switch.reason()
    record = world.trail.runs.find(run.id)
    assert record is not None
    assert record.status is status
    if status.is_terminal:
        assert record.message == "Cancelled: its flow run was deleted in Prefect"


@pytest.mark.parametrize(
    "error", [asyncio.CancelledError(), KeyboardInterrupt(), TerminationSignal(15)]
)
@pytest.mark.parametrize(
    ("state", "status", "message"),
    [
        (Running(), RunStatus.CRASHED, "Its process was terminated"),
        (Cancelling(), RunStatus.CANCELLED, "Cancelled: the run was cancelled"),
    ],
)
def test_a_run_whose_process_is_terminated_ends_on_record_at_once(
    world: RunInMemory,
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
    state: State[Any],
    status: RunStatus,
    message: str,
) -> None:
    prefect = MagicMock()
    client = prefect.__enter__.return_value
    client.read_flow_run.return_value.state = state
    monkeypatch.setattr("flows.ending.get_client", Mock(return_value=prefect))
    monkeypatch.setattr("flows.ending.current_flow_run", Mock())
    run = world.open()
    with pytest.raises(type(error)), ended_on_record(run):
        raise error
    record = world.trail.runs.find(run.id)
    assert record is not None
    assert (record.status, record.message) == (status, message)
    ended = [call.args[1].is_cancelled() for call in client.set_flow_run_state.call_args_list]
    assert ended == ([True] if state.is_cancelling() else [])


@pytest.mark.parametrize("error", [None, ValueError, Pause])
def test_a_run_whose_flow_run_is_there_is_not_ended_by_its_process(
    world: RunInMemory, error: type[BaseException] | None
) -> None:
    run = world.open()
    with suppress(ValueError, Pause), ended_on_record(run):
        if error:
            raise error
    record = world.trail.runs.find(run.id)
    assert record is not None
    assert record.status is RunStatus.RUNNING


@pytest.mark.parametrize(
    "stage",
    [
        Completed(data=StageTotals()),
        Failed(data=SyncIncomplete("1 of 2 items failed", ONE_FAILED.totals)),
        Cancelled(),
    ],
)
def test_a_run_goes_on_after_a_stage_that_came_to_its_end(stage: State[Any]) -> None:
    asyncio.run(raise_unless_ended(stage))


def test_an_exception_that_broke_a_stage_off_ends_the_run() -> None:
    with pytest.raises(ZeroDivisionError):
        asyncio.run(raise_unless_ended(Failed(data=ZeroDivisionError())))
