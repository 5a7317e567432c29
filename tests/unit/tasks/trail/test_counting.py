"""Counting: a run is the sum of its stages, and the steps say what a stage has come to."""

from typing import Any
from unittest.mock import Mock

import pytest
from bson import ObjectId
from pymongo.collection import Collection

from tasks.mongo import MongoRetry
from tasks.trail.counting import Counting
from tasks.trail.fields import RunId
from tasks.trail.runs import RunRecord, Runs
from tasks.trail.stages import RunStatus, Stages, StageTotals, Tally, Totals
from tasks.trail.step_buffer import StepBuffer
from tasks.trail.steps import Steps
from tests.trail_documents import (
    HUB,
    PERMANENT,
    TRANSIENT,
    WOULD_SEND,
    at,
    left_alone,
    step_document,
)

Document = dict[str, Any]
CRASHED, SUCCESS, RUNNING = RunStatus.CRASHED, RunStatus.SUCCESS, RunStatus.RUNNING


class WaitingSteps(StepBuffer):
    """Steps that are written when they are asked to be."""

    def __init__(self, sync_steps: Collection[Document], retry: MongoRetry) -> None:
        super().__init__(sync_steps, Mock(), retry)
        self.documents: list[Document] = []
        self._sync_steps = sync_steps

    def flush(self) -> None:
        if self.documents:
            self._sync_steps.insert_many(self.documents)
            self.documents = []


@pytest.fixture
def waiting(sync_steps: Collection[Document], retry: MongoRetry) -> WaitingSteps:
    return WaitingSteps(sync_steps, retry)


@pytest.fixture
def counting(runs: Runs, steps: Steps, waiting: WaitingSteps) -> Counting:
    return Counting(runs, steps, waiting)


@pytest.fixture
def half_done(stages: Stages, run_id: RunId, waiting: WaitingSteps) -> RunId:
    """A run whose tenants have ended, with counts of their own, and whose clients go on."""
    stages.begin(run_id, "tenant", HUB, at(1))
    stages.end(run_id, "tenant", SUCCESS, StageTotals(total=9, success=9), at(2))
    stages.begin(run_id, "client", HUB, at(3))
    stages.expect(run_id, "client", 500)
    waiting.documents = [
        step_document(run_id, 1, entity_type="client"),
        step_document(run_id, 2, TRANSIENT, entity_type="client"),
        step_document(run_id, 3, PERMANENT, entity_type="client"),
    ]
    return run_id


def found(runs: Runs, run_id: RunId) -> RunRecord:
    run = runs.find(run_id)
    assert run is not None
    return run


def test_a_stage_is_its_steps_and_what_it_left_alone(
    counting: Counting, waiting: WaitingSteps, run_id: RunId
) -> None:
    waiting.documents = [
        step_document(run_id, 1),
        step_document(run_id, 2, PERMANENT),
        step_document(run_id, 3, WOULD_SEND),
    ]
    tally = counting.tally(run_id, "tenant", left_alone(2, gone=4, first="acme"))
    assert tally == Tally(
        StageTotals(
            total=5,
            success=1,
            failed=1,
            skipped=3,
            unchanged=2,
            would_send=1,
            first="acme",
            gone=4,
        ),
        {"NOT_FOUND": 1},
    )


def test_what_an_ended_run_counts(
    counting: Counting, runs: Runs, sync_steps: Collection[Document], half_done: RunId
) -> None:
    counting.end_run(half_done, CRASHED, "its process is gone", at(9))
    run = found(runs, half_done)
    tenants, clients = run.stages
    assert (tenants.status, tenants.finished_at, tenants.success) == (SUCCESS, at(2), 9)
    assert (clients.status, clients.finished_at) == (CRASHED, at(9))
    assert (clients.total, clients.success, clients.failed) == (3, 1, 2)
    assert run.totals == Totals(total=12, success=10, failed=2)
    assert (run.status, run.message, run.finished_at) == (CRASHED, "its process is gone", at(9))
    assert [error.code for error in run.errors] == ["TIMEOUT", "NOT_FOUND"]
    assert sync_steps.count_documents({"state": "AwaitingRetry"}) == 0


def test_a_stage_that_never_began_stays_so(
    counting: Counting, runs: Runs, stages: Stages, run_id: RunId
) -> None:
    stages.begin(run_id, "tenant", HUB, at(1))
    counting.end_run(run_id, CRASHED, "gone", at(9))
    assert [stage.status for stage in found(runs, run_id).stages] == [CRASHED, RunStatus.PENDING]


def test_an_end_that_is_older_news_counts_nothing(
    counting: Counting, runs: Runs, waiting: WaitingSteps, half_done: RunId
) -> None:
    counting.end_run(half_done, SUCCESS, "all is in", at(9))
    ended = found(runs, half_done)
    waiting.documents = [step_document(half_done, 4, entity_type="client")]
    counting.end_run(half_done, CRASHED, "gone", at(8))
    assert found(runs, half_done) == ended


def test_a_run_that_nobody_knows_ends_without_a_word(
    counting: Counting, sync_runs: Collection[Document]
) -> None:
    counting.end_run(ObjectId(), CRASHED, "gone", at(9))
    assert sync_runs.count_documents({}) == 0


def test_steps_that_come_after_the_end_are_counted_in_their_stage(
    counting: Counting, runs: Runs, waiting: WaitingSteps, half_done: RunId
) -> None:
    counting.end_run(half_done, CRASHED, "gone", at(9))
    waiting.documents = [
        step_document(half_done, 4, PERMANENT, entity_type="client"),
        step_document(half_done, 5, PERMANENT),
    ]
    waiting.flush()
    counting.recount(half_done, "client")
    run = found(runs, half_done)
    assert [stage.total for stage in run.stages] == [9, 4]
    assert run.totals == Totals(total=13, success=10, failed=3)
    assert [error.code for error in run.errors] == ["TIMEOUT"] + ["NOT_FOUND"] * 3


def test_what_a_stage_left_alone_is_not_lost_when_it_is_counted_anew(
    counting: Counting, runs: Runs, stages: Stages, half_done: RunId
) -> None:
    alone = left_alone(5, gone=2, first="acme")
    stages.end(half_done, "client", SUCCESS, alone, at(4))
    counting.end_run(half_done, SUCCESS, "", at(9))
    assert found(runs, half_done).stages[1].total == 5, "a stage that has ended was counted anew"
    counting.recount(half_done, "client")
    clients = found(runs, half_done).stages[1]
    assert (clients.total, clients.success, clients.skipped) == (8, 1, 5)
    assert clients.left_alone == alone


@pytest.mark.parametrize("status", [RunStatus.PENDING, RUNNING])
def test_a_run_that_goes_on_is_not_counted_anew(
    counting: Counting, runs: Runs, waiting: WaitingSteps, half_done: RunId, status: RunStatus
) -> None:
    runs.mirror(half_done, status, "", at(5))
    before = found(runs, half_done)
    waiting.flush()
    counting.recount(half_done, "client")
    assert found(runs, half_done) == before


def test_what_another_process_counts_meanwhile_is_put_right(
    counting: Counting,
    runs: Runs,
    sync_runs: Collection[Document],
    retry: MongoRetry,
    steps: Steps,
    waiting: WaitingSteps,
    half_done: RunId,
) -> None:
    """The other one has read fewer steps, and writes after this one."""
    counting.end_run(half_done, CRASHED, "gone", at(9))
    stale = found(runs, half_done)

    class WrittenOver(Runs):
        is_new = True

        def correct(self, run: RunRecord, *counts: Any) -> bool:
            is_changed = super().correct(run, *counts)
            if self.is_new:
                self.is_new = False
                runs.correct(found(runs, half_done), stale.stages, [])
            return is_changed

    waiting.documents = [step_document(half_done, 4, entity_type="client")]
    waiting.flush()
    Counting(WrittenOver(sync_runs, retry), steps, waiting).recount(half_done, "client")
    assert found(runs, half_done).totals == Totals(total=13, success=11, failed=2)
