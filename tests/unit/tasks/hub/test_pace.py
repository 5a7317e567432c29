"""The pace of requests to an endpoint that throttles: found, kept, and given up again."""

import heapq
import itertools
from collections.abc import Generator, Iterator
from contextlib import suppress
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scripts.local.hub.throttle import Throttle
from tasks.hub.pace import LEAST_RATE, Pace

NOW = 1_000.0
FAST = 2_500.0
LONGER = 1.3
"""How many times as long as the endpoint needs a pace may take."""


def throttled(*, answers_a_second: int = 0, at: float = NOW) -> Pace:
    """Return the pace of an endpoint that has throttled once, after a second of answers."""
    pace = Pace()
    for number in range(answers_a_second):
        pace.answer(at - 1 + (number + 1) / answers_a_second)
    assert pace.throttle(at, is_sure=True)
    return pace


def test_nothing_is_held_before_an_endpoint_throttles() -> None:
    pace = Pace()
    pace.answer(NOW)
    assert not pace.is_held
    assert pace.rate(NOW) == float("inf")
    assert pace.next_at == 0.0


@pytest.mark.parametrize(
    ("answers_a_second", "rate"), [(0, LEAST_RATE), (1, LEAST_RATE), (100, 85.0), (1000, 850.0)]
)
def test_the_rate_comes_down_at_once_below_what_was_answered(
    answers_a_second: int, rate: float
) -> None:
    pace = throttled(answers_a_second=answers_a_second)
    assert pace.is_held
    assert pace.rate(NOW) == pytest.approx(rate)
    assert pace.next_at == pytest.approx(NOW + 1 / rate)


def test_requests_keep_their_distance() -> None:
    pace = throttled(answers_a_second=100)
    pace.take(NOW + 1)
    assert pace.next_at == pytest.approx(NOW + 1 + 1 / pace.rate(NOW + 1))


def test_the_first_climb_is_quick_and_ends_where_nothing_need_be_held() -> None:
    pace = throttled()
    assert pace.rate(NOW + 1) == pytest.approx(4 * LEAST_RATE)
    pace.take(NOW + 4)
    assert pace.is_held
    pace.take(NOW + 6)
    assert not pace.is_held
    assert pace.next_at == 0.0


def test_each_throttling_cuts_the_rate_which_climbs_back_and_then_tries_for_more() -> None:
    pace = throttled(answers_a_second=100)
    too_fast = pace.rate(NOW + 0.1)
    assert pace.throttle(NOW + 0.1, is_sure=True)
    assert pace.rate(NOW + 0.1) == pytest.approx(0.8075 * too_fast)
    assert pace.rate(NOW + 5) < 0.95 * too_fast
    assert pace.rate(NOW + 15.1) == pytest.approx(0.95 * too_fast)
    assert pace.rate(NOW + 30) > too_fast
    assert pace.rate(NOW + 150) > FAST


@given(st.lists(st.floats(0.0, 100.0), min_size=2, max_size=30).map(sorted))
def test_the_rate_never_falls_between_two_throttlings_nor_below_the_least(
    moments: list[float],
) -> None:
    pace = throttled()
    pace.throttle(NOW, is_sure=True)
    rates = [pace.rate(NOW + moment) for moment in moments]
    assert rates == sorted(rates)
    assert rates[0] >= LEAST_RATE


def test_a_pause_holds_everything_and_the_latest_end_counts() -> None:
    pace = Pace()
    pace.pause(NOW + 5)
    pace.pause(NOW + 2)
    assert pace.next_at == pace.resumes_at == NOW + 5
    pace.throttle(NOW, is_sure=True)
    assert pace.next_at == NOW + 5
    assert pace.rate(NOW + 5) == LEAST_RATE, "the rate climbs while nothing is sent"


def test_a_503_alone_among_answers_is_a_fault_and_two_are_throttling() -> None:
    pace = Pace()
    for number in range(20):
        pace.answer(NOW + number)
    assert not pace.throttle(NOW + 20, is_sure=False)
    assert not pace.is_held
    pace.answer(NOW + 21)
    assert pace.throttle(NOW + 22, is_sure=False)


def test_a_429_among_answers_is_throttling() -> None:
    assert throttled(answers_a_second=100).is_held


def test_an_endpoint_that_is_back_is_tried_anew() -> None:
    pace = throttled()
    for seconds in range(20):
        pace.throttle(NOW + seconds, is_sure=True)
    pace.restart(NOW + 60)
    assert pace.rate(NOW + 60) == LEAST_RATE
    assert pace.rate(NOW + 64) > 200


def test_an_endpoint_that_never_throttled_is_not_held_when_it_is_back() -> None:
    pace = Pace()
    pace.restart(NOW)
    assert not pace.is_held


@dataclass(frozen=True)
class Sending:
    """How long it took to get all items in, and what share of the requests was refused."""

    seconds: float
    refused: float


class Process:
    """A process that sends: its senders share a pace, and each sends one request at a time."""

    def __init__(self, limiter: Throttle, pause: float | None, *, is_sure: bool) -> None:
        self.refused = self.taken = 0
        self._limiter = limiter
        self._pause = pause
        self._is_sure = is_sure
        self._pace = Pace()
        self._cuts = 0

    def sender(self, items: int, delays: Iterator[float]) -> Generator[float, float, None]:
        """Get items in; yield when to go on, and receive the time then."""
        now, pace = 0.0, self._pace
        while self.taken < items:
            while now < pace.next_at:
                now = yield pace.next_at
            cuts = self._cuts
            if pace.is_held:
                pace.take(now)
            now = yield now + next(delays)
            if self._limiter.lets_through(now):
                self.taken += 1
                pace.answer(now)
            else:
                self._obey_refusal(now, is_news=cuts == self._cuts)

    def _obey_refusal(self, now: float, *, is_news: bool) -> None:
        self.refused += 1
        if self._pause is not None:
            self._pace.pause(now + self._pause)
        if is_news and self._pace.throttle(now, is_sure=self._is_sure):
            self._cuts += 1


def send_all(processes: list[Process], *, items: int, senders: int) -> Sending:
    """Let processes get items in each, on a clock of their own."""
    delays = itertools.cycle([0.0020, 0.0024, 0.0021, 0.0029, 0.0022])
    going = [each.sender(items, delays) for each in processes for _ in range(senders)]
    events = [(next(sender), number) for number, sender in enumerate(going)]
    heapq.heapify(events)
    now = 0.0
    while events:
        now, number = heapq.heappop(events)
        with suppress(StopIteration):
            heapq.heappush(events, (going[number].send(now), number))
    refused = sum(each.refused for each in processes)
    return Sending(now, refused / (refused + sum(each.taken for each in processes)))


@pytest.mark.parametrize("senders", [3, 16])
@pytest.mark.parametrize(
    ("pause", "is_sure"),
    [(None, False), (None, True), (1.0, True)],
    ids=["503", "429", "429 with Retry-After"],
)
def test_a_limit_of_20_a_second_is_found_and_kept(
    senders: int, pause: float | None, is_sure: bool
) -> None:
    process = Process(Throttle(20.0), pause, is_sure=is_sure)
    sending = send_all([process], items=1000, senders=senders)
    assert sending.seconds <= LONGER * 50
    assert sending.refused < 0.05


@pytest.mark.parametrize("rate", [2.0, 5.0, 100.0])
def test_other_limits_are_found_too(rate: float) -> None:
    process = Process(Throttle(rate), None, is_sure=True)
    sending = send_all([process], items=int(60 * rate), senders=16)
    assert sending.seconds <= LONGER * 60
    assert sending.refused < 0.2


def test_processes_that_know_nothing_of_each_other_share_a_limit() -> None:
    limiter = Throttle(20.0, burst=5)
    processes = [Process(limiter, None, is_sure=True) for _ in range(3)]
    sending = send_all(processes, items=333, senders=4)
    assert sending.seconds <= 2 * 50
    assert sending.refused < 0.2
