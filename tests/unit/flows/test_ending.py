"""The end of stages and runs: on record, and as Prefect states."""

import asyncio
from datetime import timedelta
from typing import Any

import pytest
from prefect.client.schemas.objects import State
from prefect.states import Cancelled, Completed, Failed
from pymongo.database import Database

from flows.conclusion import SyncIncomplete
from flows.ending import end_run, end_stage, raise_unless_ended
from tasks.errors import StopReason
from tasks.mongo import MongoRetry
from tasks.trail.stages import StageTotals, Tally
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
    run.stop(StopReason("Stage 1 was down"))
    end_stage(run, "tenant", ONE_FAILED)
    state = end_run(run)
    assert state.name == "Stopped"
    assert state.message == "Stopped by Stage 1 was down. 1 of 2 items failed: TIMEOUT (1)"


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
