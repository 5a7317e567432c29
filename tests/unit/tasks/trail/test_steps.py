"""Steps: what became of each item, and what that comes to for a stage."""

from typing import Any

import pytest
from bson import ObjectId
from pymongo.collection import Collection

from tasks.errors import (
    DUPLICATE_KEY,
    PARENT_FAILED,
    VERSION_NOT_RAISED,
    VERSION_REUSED,
    ErrorClass,
    ItemError,
)
from tasks.mongo import identity
from tasks.trail.fields import RunId
from tasks.trail.runs import RunErrorRecord
from tasks.trail.stages import StageTotals, Tally
from tasks.trail.steps import ERRORS_SHOWN, Steps, StepState, state_after
from tests.trail_documents import (
    PERMANENT,
    SKIPPED,
    STOPPING,
    SUPERSEDED,
    TRANSIENT,
    WOULD_SEND,
    at,
    new_step,
    step_document,
)

Collected = Collection[dict[str, Any]]
OTHER_RUN = ObjectId()
DUPLICATE = ItemError(DUPLICATE_KEY, "the highest version wins", ErrorClass.PERMANENT)
NOT_RAISED = ItemError(VERSION_NOT_RAISED, "raise the version", ErrorClass.PERMANENT)
REUSED = ItemError(VERSION_REUSED, "raise the version", ErrorClass.PERMANENT)
ORPHAN = ItemError(PARENT_FAILED, "not sent: tenant a failed", ErrorClass.SKIPPED)


@pytest.mark.parametrize(
    ("error", "state", "ok"),
    [
        (None, "Completed", True),
        (TRANSIENT, "AwaitingRetry", False),
        (PERMANENT, "Failed", False),
        (STOPPING, "Failed", False),
        (SKIPPED, "Skipped", False),
    ],
)
def test_state_of_an_item_by_its_outcome(error: ItemError | None, state: str, ok: bool) -> None:
    assert state_after(error) == state
    step = new_step(OTHER_RUN, error=error)
    assert (step.state, step.ok) == (state, ok)


@pytest.mark.parametrize(
    ("natural_key", "key"), [("acme", "acme"), (None, "_id 7"), ("a\nb", "a\\nb")]
)
def test_name_of_an_item(natural_key: str | None, key: str) -> None:
    assert new_step(OTHER_RUN, 7, natural_key=natural_key).key == key


def test_prior_steps_are_those_of_these_documents_in_this_stage(
    steps: Steps, sync_steps: Collected, run_id: RunId
) -> None:
    assert steps.prior(run_id, "tenant", [1, 2]) == {}
    sync_steps.insert_many(
        [
            step_document(run_id, 1, TRANSIENT, attempts=3, run_attempt=2),
            step_document(run_id, 2),
            step_document(run_id, "not asked for"),
            step_document(run_id, 4, entity_type="client"),
            step_document(OTHER_RUN, 5),
        ]
    )
    prior = steps.prior(run_id, "tenant", [1, 2, 3, 4, 5])
    assert set(prior) == {identity(1), identity(2)}
    first, second = prior[identity(1)], prior[identity(2)]
    assert (first.error, first.attempts, first.run_attempt) == (TRANSIENT, 3, 2)
    assert (second.error, second.attempts, second.run_attempt) == (None, 0, 1)
    assert steps.prior(run_id, "tenant", []) == {}


def test_failed_keys_are_those_that_no_retry_brings_in(
    steps: Steps, sync_steps: Collected, run_id: RunId
) -> None:
    errors = {
        "in": None,
        "refused": PERMANENT,
        "orphan": ORPHAN,
        "duplicate": DUPLICATE,
        "not raised": NOT_RAISED,
        "reused": REUSED,
        "superseded": SUPERSEDED,
        "would be sent": WOULD_SEND,
        "to be retried": TRANSIENT,
        "stopped": STOPPING,
        "not sent": SKIPPED,
    }
    sync_steps.insert_many(
        [
            *(step_document(run_id, key, error) for key, error in errors.items()),
            step_document(run_id, "nameless", PERMANENT, natural_key=None),
            step_document(run_id, "a client", PERMANENT, entity_type="client"),
            step_document(OTHER_RUN, "of another run", PERMANENT),
        ]
    )
    assert steps.failed_keys(run_id, "tenant") == {"refused", "orphan"}


@pytest.mark.parametrize(
    ("task_run_id", "failed"), [(None, [1, 2]), ("t-1", [1]), ("t-3", list[int]())]
)
def test_items_that_await_a_retry_fail_where_none_will_come(
    steps: Steps,
    sync_steps: Collected,
    run_id: RunId,
    task_run_id: str | None,
    failed: list[int],
) -> None:
    sync_steps.insert_many(
        [
            step_document(run_id, 1, TRANSIENT, task_run_id="t-1"),
            step_document(run_id, 2, TRANSIENT, task_run_id="t-2"),
            step_document(run_id, 3, task_run_id="t-1"),
            step_document(OTHER_RUN, 4, TRANSIENT, task_run_id="t-1"),
        ]
    )
    steps.fail_awaiting(run_id, task_run_id)
    changed = list(sync_steps.find({"updated_at": {"$gt": at(0)}}))
    assert [step["source_id"] for step in changed] == failed
    assert all(step["state"] == StepState.FAILED for step in changed)
    assert all(step["error"]["code"] == "TIMEOUT" for step in changed)


def test_a_tally_counts_items_by_outcome_and_code(
    steps: Steps, sync_steps: Collected, run_id: RunId
) -> None:
    outcomes = [None, None, TRANSIENT, TRANSIENT, TRANSIENT, PERMANENT, SKIPPED, SKIPPED]
    sync_steps.insert_many(
        [
            *(step_document(run_id, number, error) for number, error in enumerate(outcomes)),
            step_document(run_id, 1, PERMANENT, entity_type="client"),
            step_document(OTHER_RUN, 1, PERMANENT),
        ]
    )
    assert steps.tally(run_id, "tenant") == Tally(
        StageTotals(total=8, success=2, failed=4, skipped=2),
        {"TIMEOUT": 3, "RUN_STOPPED": 2, "NOT_FOUND": 1},
    )
    assert list(steps.tally(run_id, "tenant").codes) == ["TIMEOUT", "RUN_STOPPED", "NOT_FOUND"]
    assert steps.tally(run_id, "domain") == Tally()


def test_a_tally_counts_apart_what_is_no_failure(
    steps: Steps, sync_steps: Collected, run_id: RunId
) -> None:
    outcomes = [None, SUPERSEDED, SUPERSEDED, WOULD_SEND, SKIPPED, PERMANENT]
    sync_steps.insert_many(
        [step_document(run_id, number, error) for number, error in enumerate(outcomes)]
    )
    assert steps.tally(run_id, "tenant") == Tally(
        StageTotals(total=6, success=1, failed=1, skipped=4, superseded=2, would_send=1),
        {"NOT_FOUND": 1, "RUN_STOPPED": 1},
    )


def test_an_error_of_an_item_without_a_key_names_its_document(
    steps: Steps, sync_steps: Collected, run_id: RunId
) -> None:
    sync_steps.insert_one(step_document(run_id, 7, PERMANENT, natural_key=None))
    (error,) = steps.first_errors(run_id)
    assert (error.natural_key, error.source_id) == (None, "7")


def test_a_run_tells_of_its_oldest_errors(
    steps: Steps, sync_steps: Collected, run_id: RunId
) -> None:
    sync_steps.insert_many(
        [
            step_document(run_id, number, PERMANENT, created_at=at(-number))
            for number in range(ERRORS_SHOWN + 1)
        ]
    )
    for number, no_error in enumerate((None, SUPERSEDED, WOULD_SEND)):
        first = step_document(run_id, f"no error {number}", no_error, created_at=at(-500))
        sync_steps.insert_one(first)
    errors = steps.first_errors(run_id)
    assert [error.natural_key for error in errors] == [
        str(number) for number in range(ERRORS_SHOWN, 0, -1)
    ]
    assert errors[0] == RunErrorRecord(
        entity_type="tenant",
        natural_key=str(ERRORS_SHOWN),
        code=PERMANENT.code,
        message=PERMANENT.message,
    )
