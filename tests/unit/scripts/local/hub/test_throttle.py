"""What a throttle lets through at given times; it keeps no clock."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scripts.local.hub.throttle import Throttle


def let_through(throttle: Throttle, *times: float) -> list[float]:
    return [time for time in times if throttle.lets_through(time)]


def test_the_first_request_passes_and_the_next_once_its_time_has_come() -> None:
    throttle = Throttle(requests_per_second=2)
    assert let_through(throttle, 10, 10.25, 10.5, 10.75, 11.5) == [10, 10.5, 11.5]


def test_a_refused_request_does_not_put_the_next_one_off() -> None:
    throttle = Throttle(requests_per_second=1)
    assert let_through(throttle, 0, 0.25, 0.5, 0.75, 1) == [0, 1]


def test_a_burst_passes_at_once_on_top_of_the_first() -> None:
    throttle = Throttle(requests_per_second=1, burst=3)
    assert [throttle.lets_through(0) for _ in range(6)] == [True] * 4 + [False] * 2


def test_a_spent_burst_comes_back_at_the_rate() -> None:
    throttle = Throttle(requests_per_second=4, burst=1)
    assert let_through(throttle, 0, 0, 0) == [0, 0]
    assert let_through(throttle, 0.125, 0.25, 0.25, 0.5) == [0.25, 0.5]


def test_a_pause_of_any_length_gives_no_more_than_the_burst() -> None:
    throttle = Throttle(requests_per_second=1, burst=1)
    assert let_through(throttle, 0, 0, 1_000, 1_000, 1_000) == [0, 0, 1_000, 1_000]


@given(
    pauses=st.lists(st.integers(0, 5)),
    rate=st.integers(1, 3),
    burst=st.integers(0, 4),
)
def test_no_stretch_of_time_has_more_than_burst_and_rate_allow(
    pauses: list[int], rate: int, burst: int
) -> None:
    throttle = Throttle(rate, burst)
    times = [sum(pauses[: count + 1]) for count in range(len(pauses))]
    passed = let_through(throttle, *times)
    for first, start in enumerate(passed):
        for last, end in enumerate(passed[first:], first):
            assert last - first <= burst + rate * (end - start)


@pytest.mark.parametrize("burst", [0, 2])
def test_requests_at_the_rate_all_pass(burst: int) -> None:
    throttle = Throttle(requests_per_second=8, burst=burst)
    assert len(let_through(throttle, *[number / 8 for number in range(100)])) == 100
