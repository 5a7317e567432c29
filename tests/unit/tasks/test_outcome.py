"""Outcome: what the outcome of an item in a run changes in the item's record; a row for each."""

from dataclasses import replace
from typing import Any

import pytest

from tasks.entities import entity_type_named
from tasks.errors import ItemError
from tasks.hub.answer import UpsertOutcome
from tasks.outcome import Outcome, item_write
from tasks.request import Request
from tasks.source.item import InvalidItem, Item
from tasks.source.twins import Twin
from tasks.trail.item_writes import confirmation_of, failure_of
from tests.trail_documents import (
    HUB,
    PERMANENT,
    RUN,
    SKIPPED,
    TRANSIENT,
    at,
    confirmed,
    failure,
    item_key,
    item_record,
)

TENANT = entity_type_named("tenant")
ACME = Item(TENANT, 7, "acme", 1, {"id": "acme", "name": "Acme"})
NEW = Request(ACME, "r-1", 1)
REPEATED = replace(NEW, is_new=False)
HELD = replace(REPEATED, is_in=True)
INVALID = InvalidItem(TENANT, 8, "acme", 1, "name: it is missing")
NAMELESS = InvalidItem(TENANT, 8, None, 1, "id: it is missing")
LOSER = Twin(TENANT, 9, "acme", 1, is_deleted=True, changed_at=0)
FAILING = item_record("acme", 7, not_in_since=at(0), attempts=2)

OK = UpsertOutcome(None, 200, "sync-1", 12.5)
REFUSAL = UpsertOutcome(PERMANENT, 200, None, 1.0, is_refusal=True)
NO_WORD = UpsertOutcome(PERMANENT, 404, None, 1.0)
LOST = UpsertOutcome(TRANSIENT, None, None, 1.0)


@pytest.mark.parametrize("known", [None, FAILING])
@pytest.mark.parametrize("request_", [NEW, REPEATED, HELD])
def test_what_stage_1_takes_is_confirmed(known: Any, request_: Request) -> None:
    expected = confirmed(
        "r-1",
        version=1,
        digest=ACME.digest,
        run_id=RUN,
        at=at(5),
        body=ACME.body,
        sync_id="sync-1",
    )
    outcome = Outcome(ACME, None, request_, known, OK)
    is_new = request_.is_new
    write = confirmation_of(item_key("acme"), 7, expected, known, was_announced=is_new)
    assert item_write(HUB, outcome, RUN, at(5)) == write


@pytest.mark.parametrize(
    ("request_", "answer", "error", "requests", "not_taken"),
    [
        pytest.param(NEW, REFUSAL, PERMANENT, 1, "r-1", id="refused"),
        pytest.param(NEW, NO_WORD, PERMANENT, 1, None, id="refused by who knows whom"),
        pytest.param(NEW, LOST, TRANSIENT, 1, None, id="no answer"),
        pytest.param(REPEATED, REFUSAL, PERMANENT, 1, None, id="refused, but had before"),
        pytest.param(REPEATED, OK, PERMANENT, 1, None, id="a repeat that Stage 1 takes as old"),
        pytest.param(HELD, REFUSAL, PERMANENT, 1, None, id="refused, though it is in"),
        pytest.param(NEW, None, SKIPPED, 0, "r-1", id="announced, then stopped"),
        pytest.param(REPEATED, None, SKIPPED, 0, None, id="stopped before a repeat"),
    ],
)
def test_what_is_not_in_is_noted(
    request_: Request,
    answer: UpsertOutcome | None,
    error: ItemError,
    requests: int,
    not_taken: str | None,
) -> None:
    outcome = Outcome(ACME, error, request_, FAILING, answer)
    last = failure(error, RUN, 5)
    write = failure_of(item_key("acme"), 7, last, requests=requests, not_taken=not_taken)
    assert item_write(HUB, outcome, RUN, at(5)) == write


def test_what_can_not_be_sent_is_noted_under_its_natural_key() -> None:
    write = failure_of(item_key("acme"), 8, failure(seconds=5), requests=0, not_taken=None)
    assert item_write(HUB, Outcome(INVALID, PERMANENT), RUN, at(5)) == write


@pytest.mark.parametrize(
    "outcome",
    [
        pytest.param(Outcome(NAMELESS, PERMANENT), id="no natural key"),
        pytest.param(Outcome(LOSER, PERMANENT), id="a twin that lost"),
        pytest.param(Outcome(ACME, SKIPPED, HELD, FAILING), id="not sent, but in as it is"),
    ],
)
def test_what_says_nothing_of_an_item_changes_nothing(outcome: Outcome) -> None:
    assert item_write(HUB, outcome, RUN, at(5)) is None


def test_an_item_is_of_its_stage_1_and_its_type() -> None:
    domain = InvalidItem(entity_type_named("domain"), 8, "a.example", 1, "no tenant_id")
    write = item_write("https://other.example", Outcome(domain, PERMANENT), RUN, at(5))
    key = item_key("a.example", "https://other.example", "domain")
    last = failure(seconds=5)
    assert write == failure_of(key, 8, last, requests=0, not_taken=None)
