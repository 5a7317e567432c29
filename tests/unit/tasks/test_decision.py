"""Decisions about items: each rule is a row."""

from dataclasses import replace
from typing import Any

import pytest

from tasks.decision import (
    NOT_SENT_IN_DRY_RUN,
    Candidate,
    Conditions,
    Decision,
    Keep,
    LeaveUnchanged,
    Reject,
    Send,
    WouldSend,
    after_failed_batch,
    after_stop,
    decide,
    error_of_twin,
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
from tasks.request import Request, request_of
from tasks.source.item import InvalidItem, Item
from tasks.source.request_id import request_id
from tasks.source.twins import Twin
from tasks.trail.items import ItemRecord
from tasks.trail.steps import PriorStep
from tests.trail_documents import at, confirmed, item_record, sent

DOMAIN = Item(
    entity_type=entity_type_named("domain"),
    source_id=7,
    natural_key="a.example",
    version=1,
    body={"host": "a.example", "tenant_id": "acme", "client_id": None},
)
INVALID = InvalidItem(entity_type_named("domain"), 8, None, 1, "host: it is missing")
LOSER = Twin(DOMAIN.entity_type, 7, "a.example", 1, is_deleted=False, changed_at=0)
DELETED = replace(LOSER, is_deleted=True)

TRANSIENT = ItemError("TIMEOUT", "no answer", ErrorClass.TRANSIENT)
PERMANENT = ItemError("NOT_FOUND", "no such tenant", ErrorClass.PERMANENT)
STOPPING = ItemError(INVALID_TOKEN, "wrong", ErrorClass.RUN_STOPPING)
SKIPPED = ItemError("RUN_STOPPED", "not sent: the run was stopped", ErrorClass.SKIPPED)

SECOND_ATTEMPT = Conditions(run_attempt=2)
CHANGED = Conditions(run_attempt=2, leaves_unchanged=True)
DRY_RUN = Conditions(run_attempt=1, is_dry_run=True)
DRY_CHANGED = replace(DRY_RUN, leaves_unchanged=True)
ACME_FAILED = Conditions(run_attempt=1, failed_keys={"tenant": frozenset({"acme"})})
CHANGED_ACME_FAILED = replace(ACME_FAILED, leaves_unchanged=True)
DRY_ACME_FAILED = replace(ACME_FAILED, is_dry_run=True)
OTHERS_FAILED = Conditions(run_attempt=1, failed_keys={"tenant": {"other"}, "client": {"acme"}})
ORPHAN = ItemError(PARENT_FAILED, "not sent: tenant acme failed in this run", ErrorClass.SKIPPED)
FAULTY = ItemError("VALIDATION_ERROR", "host: it is missing", ErrorClass.PERMANENT)
DUPLICATE, SUPERSEDED = error_of_twin(LOSER), error_of_twin(DELETED)

ID = request_id("domain", "a.example", 1)
NEW = Request(DOMAIN, ID, 1)
AS_HELD = replace(NEW, is_new=False, is_in=True)


def known(digest: str = DOMAIN.digest, **fields: Any) -> ItemRecord:
    """Return what is on record of the domain at version 1."""
    last = confirmed(ID, digest=digest)
    return item_record("a.example", 7, confirmed=last, confirmed_ids=(ID,), **fields)


HELD = known()
FAILING = known(not_in_since=at(0))
IN_DOUBT = known(in_doubt=(sent(ID, digest=DOMAIN.digest),))
GONE = known(gone_since=at(0))
OTHERWISE_HELD = known("of other content")
REPEATED = request_of(DOMAIN, OTHERWISE_HELD)


def prior(error: ItemError | None, *, attempt: int = 2, requests: int = 3) -> PriorStep:
    return PriorStep(error=error, run_attempt=attempt, attempts=requests)


def again(known: ItemRecord) -> Request:
    return request_of(DOMAIN, known)


def first(found: Item | InvalidItem = DOMAIN, known: ItemRecord | None = None) -> Candidate:
    """Return what has no step in this run yet."""
    return Candidate(found, known)


def tried(step: PriorStep, found: Item | InvalidItem = DOMAIN) -> Candidate:
    return Candidate(found, None, step)


def lost(twin: Twin, step: PriorStep | None = None, found: Any = DOMAIN) -> Candidate:
    return Candidate(found, HELD, step, twin)


@pytest.mark.parametrize(
    ("candidate", "conditions", "expected"),
    [
        pytest.param(first(), SECOND_ATTEMPT, Send(NEW, 0), id="new"),
        pytest.param(first(INVALID), SECOND_ATTEMPT, Reject(INVALID, FAULTY), id="invalid"),
        pytest.param(tried(prior(None)), SECOND_ATTEMPT, Keep(None), id="in"),
        pytest.param(tried(prior(None, attempt=1)), SECOND_ATTEMPT, Keep(None), id="in before"),
        pytest.param(tried(prior(None)), CHANGED, Keep(None), id="in by now"),
        pytest.param(
            tried(prior(None), INVALID), SECOND_ATTEMPT, Keep(None), id="in, and invalid by now"
        ),
        pytest.param(tried(prior(TRANSIENT)), SECOND_ATTEMPT, Send(NEW, 3), id="to retry"),
        pytest.param(tried(prior(PERMANENT)), SECOND_ATTEMPT, Keep(PERMANENT), id="failed"),
        pytest.param(tried(prior(STOPPING)), SECOND_ATTEMPT, Keep(STOPPING), id="refused"),
        pytest.param(tried(prior(SKIPPED)), SECOND_ATTEMPT, Keep(SKIPPED), id="skipped"),
        pytest.param(
            tried(prior(PERMANENT, attempt=1)), SECOND_ATTEMPT, Send(NEW, 3), id="failed before"
        ),
        pytest.param(
            tried(prior(SKIPPED, attempt=1)), SECOND_ATTEMPT, Send(NEW, 3), id="skipped before"
        ),
        pytest.param(
            tried(prior(FAULTY, attempt=1), INVALID),
            SECOND_ATTEMPT,
            Reject(INVALID, FAULTY),
            id="faulty",
        ),
        pytest.param(lost(LOSER), SECOND_ATTEMPT, Reject(LOSER, DUPLICATE), id="a twin that lost"),
        pytest.param(
            lost(DELETED), SECOND_ATTEMPT, Reject(DELETED, SUPERSEDED), id="a deleted twin"
        ),
        pytest.param(lost(LOSER), CHANGED, Reject(LOSER, DUPLICATE), id="a twin, though as held"),
        pytest.param(
            lost(LOSER, found=INVALID), SECOND_ATTEMPT, Reject(LOSER, DUPLICATE), id="invalid twin"
        ),
        pytest.param(lost(LOSER), DRY_RUN, Reject(LOSER, DUPLICATE), id="a twin in a dry run"),
        pytest.param(
            lost(LOSER, prior(None)), SECOND_ATTEMPT, Keep(None), id="lost, but in before"
        ),
        pytest.param(
            lost(DELETED, prior(SUPERSEDED)), SECOND_ATTEMPT, Keep(SUPERSEDED), id="lost already"
        ),
        pytest.param(
            lost(LOSER, prior(TRANSIENT)), SECOND_ATTEMPT, Reject(LOSER, DUPLICATE), id="lost since"
        ),
        pytest.param(first(known=HELD), SECOND_ATTEMPT, Send(AS_HELD, 0), id="full: as it is held"),
        pytest.param(first(known=HELD), CHANGED, LeaveUnchanged("a.example"), id="as it is held"),
        pytest.param(
            first(known=GONE),
            CHANGED,
            LeaveUnchanged("a.example", is_back=True),
            id="as it is held, and back",
        ),
        pytest.param(
            first(known=FAILING), CHANGED, Send(AS_HELD, 0), id="as it is held, but it failed since"
        ),
        pytest.param(
            first(known=IN_DOUBT), CHANGED, Send(again(IN_DOUBT), 0), id="as it is held, in doubt"
        ),
        pytest.param(
            first(known=OTHERWISE_HELD),
            CHANGED,
            Send(REPEATED, 0),
            id="a repeat is sent all the same",
        ),
        pytest.param(first(), ACME_FAILED, Reject(DOMAIN, ORPHAN, NEW), id="orphan"),
        pytest.param(first(), OTHERS_FAILED, Send(NEW, 0), id="of another parent"),
        pytest.param(first(INVALID), ACME_FAILED, Reject(INVALID, FAULTY), id="invalid orphan"),
        pytest.param(
            first(known=HELD),
            CHANGED_ACME_FAILED,
            LeaveUnchanged("a.example"),
            id="orphan, as it is held",
        ),
        pytest.param(first(), DRY_ACME_FAILED, Reject(DOMAIN, ORPHAN, NEW), id="dry run, orphan"),
        pytest.param(first(), DRY_RUN, WouldSend(NEW), id="dry run"),
        pytest.param(first(known=HELD), DRY_RUN, WouldSend(AS_HELD), id="dry run, full"),
        pytest.param(first(INVALID), DRY_RUN, Reject(INVALID, FAULTY), id="dry run, invalid"),
        pytest.param(
            first(known=HELD), DRY_CHANGED, LeaveUnchanged("a.example"), id="dry run, unchanged"
        ),
    ],
)
def test_decide(candidate: Candidate, conditions: Conditions, expected: Decision) -> None:
    assert decide(candidate, conditions) == expected


def test_a_dry_run_tells_of_what_stage_1_would_take_for_a_repeat() -> None:
    assert REPEATED.repeat is not None
    assert REPEATED.repeat.code == "VERSION_NOT_RAISED"
    decision = decide(first(known=OTHERWISE_HELD), DRY_RUN)
    assert isinstance(decision, Reject)
    assert (decision.found, decision.error) == (DOMAIN, REPEATED.repeat)


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
    item = Item(DOMAIN.entity_type, 7, "a.example", 1, body)
    failed = {"tenant": frozenset({"acme"}), "subtenant": frozenset({"sub"})}
    assert failed_parent(item, failed) == parent


def test_a_stopped_run_skips_what_it_has_not_tried() -> None:
    down = StopReason("Stage 1 was down for 60 s", HUB_UNAVAILABLE)
    error = ItemError(HUB_UNAVAILABLE, f"not sent: {down.message}", ErrorClass.SKIPPED)
    assert after_stop(down, NEW, None) == Reject(DOMAIN, error, NEW)
    assert after_stop(down, NEW, prior(TRANSIENT)) == Keep(TRANSIENT)
    skipped = after_stop(RUN_CANCELLED, NEW, None)
    assert skipped.error == ItemError(
        "RUN_STOPPED", "not sent: the run was cancelled", ErrorClass.SKIPPED
    )


@pytest.mark.parametrize(
    ("candidate", "conditions", "expected"),
    [
        pytest.param(first(), SECOND_ATTEMPT, None, id="open"),
        pytest.param(first(INVALID), SECOND_ATTEMPT, None, id="invalid"),
        pytest.param(lost(LOSER), SECOND_ATTEMPT, Reject(LOSER, DUPLICATE), id="a twin that lost"),
        pytest.param(first(known=HELD), SECOND_ATTEMPT, None, id="full: as it is held"),
        pytest.param(first(known=HELD), CHANGED, LeaveUnchanged("a.example"), id="as it is held"),
        pytest.param(tried(prior(None)), SECOND_ATTEMPT, Keep(None), id="in"),
        pytest.param(tried(prior(PERMANENT)), SECOND_ATTEMPT, Keep(PERMANENT), id="failed"),
        pytest.param(tried(prior(TRANSIENT)), SECOND_ATTEMPT, Keep(TRANSIENT), id="tried"),
    ],
)
def test_a_broken_batch_fails_what_has_no_outcome(
    candidate: Candidate, conditions: Conditions, expected: Decision | None
) -> None:
    cause = KeyError("a secret")
    error = ItemError("INTERNAL_ERROR", "KeyError", ErrorClass.PERMANENT)
    failed = Reject(candidate.found, error)
    assert after_failed_batch(candidate, conditions, cause) == (expected or failed)


@pytest.mark.parametrize("error", [None, TRANSIENT, PERMANENT])
def test_a_run_goes_on_after(error: ItemError | None) -> None:
    assert stop_after(DOMAIN, error) is None


def test_an_error_that_is_true_of_every_item_stops_the_run_and_says_where() -> None:
    assert stop_after(DOMAIN, STOPPING) == StopReason("INVALID_TOKEN at domain a.example: wrong")


def test_a_live_duplicate_is_a_permanent_error_and_a_deleted_one_none() -> None:
    assert (DUPLICATE.code, DUPLICATE.error_class) == ("DUPLICATE_KEY", ErrorClass.PERMANENT)
    assert (SUPERSEDED.code, SUPERSEDED.error_class) == ("SUPERSEDED", ErrorClass.SKIPPED)


def test_what_a_dry_run_does_not_send_is_skipped() -> None:
    would_send = (NOT_SENT_IN_DRY_RUN.code, NOT_SENT_IN_DRY_RUN.error_class)
    assert would_send == ("WOULD_SEND", ErrorClass.SKIPPED)
