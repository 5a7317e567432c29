"""Counting: a run is the sum of its stages, and the steps say what a stage has come to."""

from typing import Any
from unittest.mock import Mock

import pytest
from bson import ObjectId
from pymongo.collection import Collection

from tasks.mongo import MongoRetry
from tasks.trail.counting import Counting
from tasks.trail.fields import RunAttempt, RunId
from tasks.trail.ownership import Ownership
from tasks.trail.runs import RunRecord, Runs
from tasks.trail.stages import RunStatus, Stages, StageTotals, Tally, Totals
from tasks.trail.step_buffer import StepBuffer
from tasks.trail.steps import Steps
from tests.trail_documents import (
    HUB,
    OPTIONS,
    PERMANENT,
    TRANSIENT,
    WOULD_SEND,
    at,
    begin,
    left_alone,
    step_document,
)

Document = dict[str, Any]
CRASHED, SUCCESS, RUNNING = RunStatus.CRASHED, RunStatus.SUCCESS, RunStatus.RUNNING


class WaitingSteps(StepBuffer):
    """Steps that are written when they are asked to be."""

    def __init__(self, sync_steps: Collection[Document], retry: MongoRetry) -> None:
        super().__init__(sync_steps, Mock(), Mock(), retry)
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
def attempt(ownership: Ownership, run_id: RunId) -> RunAttempt:
    """The first attempt of the run."""
    return begin(ownership, run_id)


@pytest.fixture
def half_done(stages: Stages, attempt: RunAttempt, waiting: WaitingSteps) -> RunId:
    """A run whose tenants have ended, with counts of their own, and whose clients go on."""
    run_id = attempt.run_id
    stages.begin(attempt, "tenant", HUB, at(1))
    stages.end(attempt, "tenant", SUCCESS, StageTotals(total=9, success=9), at(2))
    stages.begin(attempt, "client", HUB, at(3))
    stages.expect(attempt, "client", 500)
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
    counting: Counting, runs: Runs, stages: Stages, attempt: RunAttempt
) -> None:
    stages.begin(attempt, "tenant", HUB, at(1))
    counting.end_run(attempt.run_id, CRASHED, "gone", at(9))
    assert [stage.status for stage in found(runs, attempt.run_id).stages] == [
        CRASHED,
        RunStatus.PENDING,
    ]


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
    counting: Counting, runs: Runs, stages: Stages, attempt: RunAttempt, half_done: RunId
) -> None:
    alone = left_alone(5, gone=2, first="acme")
    stages.end(attempt, "client", SUCCESS, alone, at(4))
    counting.end_run(half_done, SUCCESS, "", at(9))
    assert found(runs, half_done).stages[1].total == 5, "a stage that has ended was counted anew"
    counting.recount(half_done, "client")
    clients = found(runs, half_done).stages[1]
    assert (clients.total, clients.success, clients.skipped) == (8, 1, 5)
    assert clients.left_alone == alone


@pytest.mark.parametrize("status", [RunStatus.PENDING, RUNNING])
def test_a_run_that_goes_on_is_not_counted_anew(
    counting: Counting,
    runs: Runs,
    ownership: Ownership,
    waiting: WaitingSteps,
    half_done: RunId,
    status: RunStatus,
) -> None:
    if status is RunStatus.PENDING:
        ownership.suspend(half_done, "", at(5))
    before = found(runs, half_done)
    assert before.status is status
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


@pytest.mark.parametrize("ended", [1, 2, None])
def test_only_the_last_attempt_ends_its_run(
    counting: Counting,
    runs: Runs,
    ownership: Ownership,
    sync_steps: Collection[Document],
    half_done: RunId,
    ended: int | None,
) -> None:
    begin(ownership, half_done, since=5)
    before = found(runs, half_done)
    counting.end_run(half_done, CRASHED, "gone", at(9), ended)
    is_over = ended != 1
    assert found(runs, half_done).status is (CRASHED if is_over else RUNNING)
    assert (found(runs, half_done) == before) is not is_over
    awaiting = sync_steps.count_documents({"state": "AwaitingRetry"})
    assert awaiting == (0 if is_over else 1), "they are those of the later attempt"


def test_no_attempt_that_begins_meanwhile_is_ended(
    counting: Counting,
    runs: Runs,
    ownership: Ownership,
    monkeypatch: pytest.MonkeyPatch,
    half_done: RunId,
) -> None:
    """It begins once the run has been read, and counted."""
    count = Steps.first_errors

    def begun_meanwhile(steps: Steps, run_id: RunId) -> Any:
        begin(ownership, run_id, since=5)
        return count(steps, run_id)

    monkeypatch.setattr(Steps, "first_errors", begun_meanwhile)
    counting.end_run(half_done, CRASHED, "gone", at(9))
    run = found(runs, half_done)
    assert (run.status, run.attempt, run.stages[1].status) == (RUNNING, 2, RUNNING)


def test_an_end_that_is_older_news_leaves_what_awaits_a_retry(
    counting: Counting, ownership: Ownership, sync_steps: Collection[Document], half_done: RunId
) -> None:
    begin(ownership, half_done, since=5)
    sync_steps.insert_one(step_document(half_done, 8, TRANSIENT, run_attempt=2))
    counting.end_run(half_done, CRASHED, "gone", at(4))
    step = sync_steps.find_one({"run_attempt": 2})
    assert step is not None
    assert step["state"] == "AwaitingRetry"


@pytest.mark.parametrize("at_seconds", [None, 9])
def test_an_end_that_prefect_has_not_noted_is_no_news_to_compare_with(
    counting: Counting, runs: Runs, half_done: RunId, at_seconds: float | None
) -> None:
    mirrored_at = found(runs, half_done).mirrored_at
    told = None if at_seconds is None else at(at_seconds)
    counting.end_run(half_done, CRASHED, "gone", told)
    run = found(runs, half_done)
    assert (run.status, run.finished_at is None) == (CRASHED, False)
    assert run.mirrored_at == (told or mirrored_at)
    assert run.finished_at == (told or run.finished_at)


def test_stages_that_only_earlier_attempts_were_asked_for_count(
    counting: Counting,
    stages: Stages,
    waiting: WaitingSteps,
    attempt: RunAttempt,
    half_done: RunId,
) -> None:
    alone = left_alone(5, gone=2, first="acme")
    stages.end(attempt, "client", RunStatus.PARTIAL, alone, at(4))
    waiting.documents.append(step_document(half_done, 9))
    waiting.flush()
    clients = Tally(
        StageTotals(total=8, success=1, failed=2, skipped=5, unchanged=5, first="acme", gone=2),
        {"TIMEOUT": 1, "NOT_FOUND": 1},
    )
    tenants = Tally(StageTotals(total=1, success=1))
    assert counting.tally_besides(half_done, ["tenant"]) == clients
    assert counting.tally_besides(half_done, ["client"]) == tenants
    assert counting.tally_besides(half_done, []) == tenants + clients
    assert counting.tally_besides(half_done, OPTIONS.entities) == Tally()


def test_a_stage_that_never_began_counts_nothing_besides(
    counting: Counting, attempt: RunAttempt
) -> None:
    assert counting.tally_besides(attempt.run_id, []) == Tally()
    assert counting.tally_besides(ObjectId(), []) == Tally()
