"""RetryBudget: whatever the order of events, retries keep to their share of the requests."""

import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.retry_budget import RETRIES_FREE, RETRY_SHARE, RetryBudget


@given(st.lists(st.tuples(st.integers(0, 400), st.integers(0, 200)), max_size=8))
def test_retries_stay_under_their_share_or_the_free_ones(steps: list[tuple[int, int]]) -> None:
    budget = RetryBudget()
    requests = retries = 0
    for firsts, wanted in steps:
        for _ in range(firsts):
            budget.count_request()
        requests += firsts
        for _ in range(wanted):
            is_granted = budget.take_retry()
            is_within = retries + 1 < RETRY_SHARE * (requests + 1)
            assert is_granted == (retries < RETRIES_FREE or is_within)
            if is_granted:
                budget.count_request()
                retries += 1
                requests += 1
    assert retries <= RETRIES_FREE or retries < RETRY_SHARE * requests


def test_that_it_is_spent_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    budget = RetryBudget()
    for _ in range(RETRIES_FREE + 10):
        budget.count_request()
    with caplog.at_level(logging.WARNING):
        granted = [budget.take_retry() for _ in range(RETRIES_FREE + 50)]
    assert granted == [True] * RETRIES_FREE + [False] * 50
    assert caplog.messages == [
        "The retry budget is spent (100 of 110 requests were retries): "
        "more items that failed transiently are left to the next run"
    ]
