"""Decisions about items: each rule is a row."""

import pytest

from tasks.decision import (
    DUPLICATE,
    Conditions,
    Decision,
    Found,
    Keep,
    LeaveUnchanged,
    Reject,
    Send,
    WouldSend,
    after_failed_batch,
    after_stop,
    decide,
    failed_parent,
    is_final,
    stop_after,
)
from tasks.entities import entity_type_named
from tasks.errors import (
    HUB_UNAVAILABLE,
    INVALID_TOKEN,
    PARENT_FAILED,
    RUN_CANCELLED,
    ErrorClass,
    ItemError,
    StopReason,
)
from tasks.source.item import InvalidItem, Item, Unchanged
from tasks.trail.steps import PriorStep

DOMAIN = Item(
    entity_type=entity_type_named("domain"),
    source_id=7,
    natural_key="a.example",
    version=1,
    request_id="f" * 32,
    body={"host": "a.example", "tenant_id": "acme", "client_id": None},
)
INVALID = InvalidItem(entity_type_named("domain"), 8, None, 1, "host: it is missing")
UNCHANGED = Unchanged(9)

TRANSIENT = ItemError("TIMEOUT", "no answer", ErrorClass.TRANSIENT)
PERMANENT = ItemError("NOT_FOUND", "no such tenant", ErrorClass.PERMANENT)
STOPPING = ItemError(INVALID_TOKEN, "wrong", ErrorClass.RUN_STOPPING)
SKIPPED = ItemError("RUN_STOPPED", "not sent: the run was stopped", ErrorClass.SKIPPED)

SECOND_ATTEMPT = Conditions(run_attempt=2)
DRY_RUN = Conditions(run_attempt=1, is_dry_run=True)
ACME_FAILED = Conditions(run_attempt=1, failed_keys={"tenant": frozenset({"acme"})})
OTHERS_FAILED = Conditions(run_attempt=1, failed_keys={"tenant": {"other"}, "client": {"acme"}})
ORPHAN = ItemError(PARENT_FAILED, "not sent: tenant acme failed in this run", ErrorClass.SKIPPED)
FAULTY = ItemError("VALIDATION_ERROR", "host: it is missing", ErrorClass.PERMANENT)


def prior(error: ItemError | None, *, attempt: int = 2, requests: int = 3) -> PriorStep:
    return PriorStep(error=error, run_attempt=attempt, attempts=requests)


@pytest.mark.parametrize(
    ("found", "step", "conditions", "expected"),
    [
        pytest.param(DOMAIN, None, SECOND_ATTEMPT, Send(DOMAIN, 0), id="new"),
        pytest.param(INVALID, None, SECOND_ATTEMPT, Reject(INVALID, FAULTY), id="invalid"),
        pytest.param(UNCHANGED, None, SECOND_ATTEMPT, LeaveUnchanged(), id="unchanged"),
        pytest.param(DOMAIN, prior(None), SECOND_ATTEMPT, Keep(None), id="in"),
        pytest.param(DOMAIN, prior(None, attempt=1), SECOND_ATTEMPT, Keep(None), id="in before"),
        pytest.param(UNCHANGED, prior(None), SECOND_ATTEMPT, Keep(None), id="in by now"),
        pytest.param(DOMAIN, prior(TRANSIENT), SECOND_ATTEMPT, Send(DOMAIN, 3), id="to retry"),
        pytest.param(DOMAIN, prior(PERMANENT), SECOND_ATTEMPT, Keep(PERMANENT), id="failed"),
        pytest.param(DOMAIN, prior(STOPPING), SECOND_ATTEMPT, Keep(STOPPING), id="refused"),
        pytest.param(DOMAIN, prior(SKIPPED), SECOND_ATTEMPT, Keep(SKIPPED), id="skipped"),
        pytest.param(
            DOMAIN, prior(PERMANENT, attempt=1), SECOND_ATTEMPT, Send(DOMAIN, 3), id="failed before"
        ),
        pytest.param(
            DOMAIN, prior(SKIPPED, attempt=1), SECOND_ATTEMPT, Send(DOMAIN, 3), id="skipped before"
        ),
        pytest.param(
            INVALID,
            prior(FAULTY, attempt=1),
            SECOND_ATTEMPT,
            Reject(INVALID, FAULTY),
            id="faulty",
        ),
        pytest.param(DOMAIN, None, ACME_FAILED, Reject(DOMAIN, ORPHAN), id="orphan"),
        pytest.param(DOMAIN, None, OTHERS_FAILED, Send(DOMAIN, 0), id="of another parent"),
        pytest.param(INVALID, None, ACME_FAILED, Reject(INVALID, FAULTY), id="invalid orphan"),
        pytest.param(DOMAIN, None, DRY_RUN, WouldSend("a.example"), id="dry run"),
        pytest.param(INVALID, None, DRY_RUN, Reject(INVALID, FAULTY), id="dry run, invalid"),
        pytest.param(UNCHANGED, None, DRY_RUN, LeaveUnchanged(), id="dry run, unchanged"),
    ],
)
def test_decide(
    found: Found, step: PriorStep | None, conditions: Conditions, expected: Decision
) -> None:
    assert decide(found, step, conditions) == expected


@pytest.mark.parametrize("error", [None, TRANSIENT, PERMANENT, STOPPING, SKIPPED])
@pytest.mark.parametrize("attempt", [1, 2])
def test_an_outcome_is_final_if_in_or_if_not_transient_in_the_same_attempt(
    error: ItemError | None, attempt: int
) -> None:
    expected = error is None or (attempt == 2 and error is not TRANSIENT)
    assert is_final(prior(error, attempt=attempt), run_attempt=2) is expected


@pytest.mark.parametrize(
    ("body", "parent"),
    [
        ({"tenant_id": "acme"}, "tenant acme"),
        ({"tenant_id": "well", "default_subtenant_id": "sub"}, "subtenant sub"),
        ({"tenant_id": "well", "default_subtenant_id": "acme"}, None),
        ({"tenant_id": None}, None),
        ({}, None),
    ],
)
def test_the_first_failed_parent(body: dict[str, str | None], parent: str | None) -> None:
    item = Item(DOMAIN.entity_type, 7, "a.example", 1, "f" * 32, body)
    failed = {"tenant": frozenset({"acme"}), "subtenant": frozenset({"sub"})}
    assert failed_parent(item, failed) == parent


def test_a_stopped_run_skips_what_it_has_not_tried() -> None:
    down = StopReason("Stage 1 was down for 60 s", HUB_UNAVAILABLE)
    error = ItemError(HUB_UNAVAILABLE, f"not sent: {down.message}", ErrorClass.SKIPPED)
    assert after_stop(down, DOMAIN, None) == Reject(DOMAIN, error)
    assert after_stop(down, DOMAIN, prior(TRANSIENT)) == Keep(TRANSIENT)
    skipped = after_stop(RUN_CANCELLED, DOMAIN, None)
    assert skipped.error == ItemError(
        "RUN_STOPPED", "not sent: the run was cancelled", ErrorClass.SKIPPED
    )


def test_a_broken_batch_fails_what_has_no_outcome() -> None:
    error = ItemError("INTERNAL_ERROR", "KeyError", ErrorClass.PERMANENT)
    cause = KeyError("a secret")
    assert after_failed_batch(DOMAIN, None, cause) == Reject(DOMAIN, error)
    assert after_failed_batch(INVALID, None, cause) == Reject(INVALID, error)
    assert after_failed_batch(UNCHANGED, None, cause) == LeaveUnchanged()
    assert after_failed_batch(DOMAIN, prior(None), cause) == Keep(None)
    assert after_failed_batch(DOMAIN, prior(PERMANENT), cause) == Keep(PERMANENT)


@pytest.mark.parametrize("error", [None, TRANSIENT, PERMANENT])
def test_a_run_goes_on_after(error: ItemError | None) -> None:
    assert stop_after(DOMAIN, error) is None


def test_an_error_that_is_true_of_every_item_stops_the_run_and_says_where() -> None:
    assert stop_after(DOMAIN, STOPPING) == StopReason("INVALID_TOKEN at domain a.example: wrong")


def test_a_duplicate_is_a_permanent_error() -> None:
    assert (DUPLICATE.code, DUPLICATE.error_class) == ("DUPLICATE_KEY", ErrorClass.PERMANENT)
