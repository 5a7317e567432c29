"""A 401 or 403 without a known code: about one item, or about the token."""

import pytest

from tasks.errors import ErrorClass, ItemError
from tasks.hub.answer import UpsertOutcome
from tasks.hub.refusals import Refusals

PERMANENT, RUN_STOPPING = ErrorClass.PERMANENT, ErrorClass.RUN_STOPPING


def answer(code: str, error_class: ErrorClass, status: int = 403) -> UpsertOutcome:
    return UpsertOutcome(ItemError(code, "no", error_class), status, None, 1.0)


IN = UpsertOutcome(None, 200, "sync-1", 1.0)
REFUSED = answer("HTTP_403", RUN_STOPPING)
NOT_FOUND = answer("NOT_FOUND", PERMANENT, 404)
TIMEOUT = answer("TIMEOUT", ErrorClass.TRANSIENT)


def classes(*outcomes: UpsertOutcome, was_out: bool = False) -> list[ErrorClass | None]:
    """Return what becomes of the answers of a run, one after the other."""
    refusals = Refusals()
    judged = [refusals.judged(outcome, was_out=was_out) for outcome in outcomes]
    return [outcome.error and outcome.error.error_class for outcome in judged]


@pytest.mark.parametrize("before", [[], [NOT_FOUND], [TIMEOUT]])
def test_before_anything_is_accepted_it_is_about_the_token(before: list[UpsertOutcome]) -> None:
    assert classes(*before, REFUSED)[-1] is RUN_STOPPING


def test_once_others_are_accepted_it_is_about_the_item() -> None:
    judged = Refusals()
    judged.judged(IN, was_out=False)
    refused = judged.judged(REFUSED, was_out=False)
    assert refused.error == ItemError("HTTP_403", "no", PERMANENT)
    assert refused.http_status == 403


def test_three_in_a_row_are_about_the_token() -> None:
    assert classes(IN, REFUSED, REFUSED, REFUSED)[1:] == [PERMANENT, PERMANENT, RUN_STOPPING]


@pytest.mark.parametrize("between", [IN, NOT_FOUND])
def test_any_other_answer_ends_the_row(between: UpsertOutcome) -> None:
    told = classes(IN, REFUSED, REFUSED, between, REFUSED, REFUSED, REFUSED)
    assert told[4:] == [PERMANENT, PERMANENT, RUN_STOPPING]


def test_no_answer_does_not_end_the_row() -> None:
    assert classes(IN, REFUSED, REFUSED, TIMEOUT, REFUSED)[-1] is RUN_STOPPING


def test_an_item_that_was_out_before_does_not_stop_a_run_that_has_sent_nothing_else() -> None:
    assert classes(REFUSED, REFUSED, REFUSED, was_out=True) == [PERMANENT, PERMANENT, RUN_STOPPING]


@pytest.mark.parametrize("code", ["INVALID_TOKEN", "MISSING_AUTH"])
def test_what_stage_1_says_of_the_token_itself_counts_as_ever(code: str) -> None:
    assert classes(IN, answer(code, RUN_STOPPING), was_out=True)[-1] is RUN_STOPPING
