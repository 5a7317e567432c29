"""SendGate: many senders, one Stage 1 that falters, is down, comes back, or asks for a pause."""

import logging
import time
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.errors import HUB_UNAVAILABLE, RUN_STOPPED, ErrorClass, ItemError, StopReason
from tasks.hub.gate import CircuitBreaker, Passage, SendGate

TRANSIENT = ItemError("TIMEOUT", "no answer within 8000 ms", ErrorClass.TRANSIENT)
PERMANENT = ItemError("NOT_FOUND", "no", ErrorClass.PERMANENT)
STOPPED = StopReason("somebody stopped it")
FAILURES = 3
SHORT = 0.1
LONG = 60.0
PATIENCE = 10.0
SENDERS = 8

Leave = Passage | StopReason
Sends = Callable[[SendGate], "Future[Leave]"]


def new_gate(
    *,
    failures: int = FAILURES,
    probe_seconds: float = LONG,
    limit_seconds: float = LONG,
    look: Callable[[], StopReason | None] = lambda: None,
) -> SendGate:
    breaker = CircuitBreaker(
        failures=failures, probe_seconds=probe_seconds, limit_seconds=limit_seconds
    )
    return SendGate(look, breaker)


@pytest.fixture
def sends() -> Iterator[Sends]:
    """Let a sender on a thread of its own come to a gate."""
    gates = []
    with ThreadPoolExecutor(2 * SENDERS) as pool:

        def send(gate: SendGate) -> "Future[Leave]":
            gates.append(gate)
            return pool.submit(gate.pass_through)

        yield send
        for gate in gates:
            gate.close(StopReason("the test is over"))


def passage(gate: SendGate) -> Passage:
    leave = gate.pass_through()
    assert isinstance(leave, Passage)
    return leave


def fail(gate: SendGate, times: int = 1) -> StopReason | None:
    """Let requests pass and fail, one after the other; return what the last one led to."""
    stop = None
    for _ in range(times):
        stop = gate.report(passage(gate), TRANSIENT)
    return stop


def are_held(senders: list["Future[Leave]"]) -> bool:
    """Whether none of the senders gets through for a while."""
    wait(senders, timeout=3 * SHORT, return_when=FIRST_COMPLETED)
    return not any(sender.done() for sender in senders)


def the_only_one_through(senders: list["Future[Leave]"]) -> Passage:
    wait(senders, timeout=PATIENCE, return_when=FIRST_COMPLETED)
    (done,) = [sender for sender in senders if sender.done()]
    assert are_held([sender for sender in senders if sender is not done])
    leave = done.result()
    assert isinstance(leave, Passage)
    return leave


def all_through(senders: list["Future[Leave]"]) -> bool:
    return all(isinstance(sender.result(PATIENCE), Passage) for sender in senders)


def test_failures_in_a_row_hold_all_senders(sends: Sends) -> None:
    gate = new_gate()
    fail(gate, FAILURES)
    assert are_held([sends(gate) for _ in range(SENDERS)])


@given(
    failures=st.integers(1, 4),
    outcomes=st.lists(st.sampled_from([None, PERMANENT, TRANSIENT, TRANSIENT, TRANSIENT])),
)
def test_only_a_row_that_is_long_enough_trips_the_breaker(
    failures: int, outcomes: list[ItemError | None]
) -> None:
    breaker = CircuitBreaker(failures=failures, probe_seconds=LONG, limit_seconds=LONG)
    gate = SendGate(lambda: None, breaker)
    row = 0
    for error in outcomes:
        gate.report(passage(gate), error)
        row = row + 1 if error is TRANSIENT else 0
        assert (breaker.passable_at > 0) == (row == failures)
        if row == failures:
            return


@pytest.mark.parametrize("answer", [None, PERMANENT], ids=["success", "refusal"])
def test_one_of_those_who_wait_probes_and_an_answer_lets_all_go_on(
    answer: ItemError | None, sends: Sends
) -> None:
    gate = new_gate(probe_seconds=SHORT)
    fail(gate, FAILURES)
    waiting = [sends(gate) for _ in range(SENDERS)]
    assert gate.report(the_only_one_through(waiting), answer) is None
    assert all_through(waiting)


def test_a_probe_that_fails_is_followed_by_the_next_an_interval_later(sends: Sends) -> None:
    gate = new_gate(probe_seconds=SHORT)
    fail(gate, FAILURES)
    tripped_at = time.monotonic()
    fail(gate, 3)
    passage(gate)
    assert time.monotonic() - tripped_at >= 3.9 * SHORT
    assert are_held([sends(gate)])


def test_a_probe_of_which_nothing_is_known_makes_room_for_another(sends: Sends) -> None:
    gate = new_gate(probe_seconds=SHORT)
    fail(gate, FAILURES)
    probe = passage(gate)
    waiting = [sends(gate) for _ in range(SENDERS)]
    assert are_held(waiting)
    gate.give_back(probe)
    assert the_only_one_through(waiting)


def test_a_failure_from_before_it_tripped_is_no_failed_probe(sends: Sends) -> None:
    breaker = CircuitBreaker(failures=FAILURES, probe_seconds=SHORT, limit_seconds=0)
    gate = SendGate(lambda: None, breaker)
    in_flight = [passage(gate) for _ in range(2)]
    fail(gate, FAILURES)
    probes_at = breaker.passable_at
    time.sleep(SHORT / 2)
    assert gate.report(in_flight[0], TRANSIENT) is None
    assert breaker.passable_at == probes_at, "the late failure put the probe off"
    probe = passage(gate)
    assert gate.report(in_flight[1], TRANSIENT) is None
    assert are_held([sends(gate)]), "the late failure ended the probe"
    assert gate.report(probe, TRANSIENT) is not None


def test_a_failure_from_before_it_recovered_is_not_counted(sends: Sends) -> None:
    gate = new_gate(probe_seconds=SHORT)
    in_flight = [passage(gate) for _ in range(FAILURES)]
    fail(gate, FAILURES)
    gate.report(passage(gate), None)
    for late in in_flight:
        gate.report(late, TRANSIENT)
    assert all_through([sends(gate)])


def test_a_late_success_shows_too_that_stage_1_is_up(sends: Sends) -> None:
    gate = new_gate(probe_seconds=SHORT)
    in_flight = passage(gate)
    fail(gate, FAILURES)
    probe = passage(gate)
    waiting = [sends(gate) for _ in range(SENDERS)]
    gate.report(in_flight, None)
    assert all_through(waiting)
    gate.report(probe, TRANSIENT)
    fail(gate, FAILURES - 1)
    assert all_through([sends(gate)])


def test_the_first_probe_that_fails_after_the_limit_stops_the_run() -> None:
    gate = new_gate(probe_seconds=SHORT, limit_seconds=SHORT / 2)
    assert fail(gate, FAILURES) is None
    reason = fail(gate)
    assert reason is not None
    assert reason.code == HUB_UNAVAILABLE
    assert reason.message.startswith("HUB_UNAVAILABLE: Stage 1 was down for 0.")
    assert reason.message.endswith("the last failure TIMEOUT: no answer within 8000 ms")


def test_up_to_the_limit_no_probe_that_fails_stops_the_run() -> None:
    gate = new_gate(probe_seconds=SHORT, limit_seconds=LONG)
    assert fail(gate, FAILURES) is None
    assert [fail(gate) for _ in range(3)] == [None] * 3


def test_the_limit_counts_anew_after_each_recovery() -> None:
    limit = 5 * SHORT
    gate = new_gate(probe_seconds=SHORT / 5, limit_seconds=limit)
    began = time.monotonic()
    while time.monotonic() < began + 1.5 * limit:
        assert fail(gate, FAILURES) is None
        assert fail(gate) is None
        gate.report(passage(gate), None)


def test_closing_is_noticed_by_all_who_wait(sends: Sends) -> None:
    gate = new_gate()
    fail(gate, FAILURES)
    waiting = [sends(gate) for _ in range(SENDERS)]
    assert are_held(waiting)
    gate.close(STOPPED)
    gate.close(StopReason("a later reason", HUB_UNAVAILABLE))
    assert {sender.result(PATIENCE) for sender in waiting} == {STOPPED}
    assert gate.pass_through() == gate.closed_because == STOPPED
    assert not gate.is_open()
    assert STOPPED.code == RUN_STOPPED


@pytest.mark.parametrize("held_by", ["failures", "pause"])
def test_what_another_process_closes_is_noticed_while_waiting(held_by: str, sends: Sends) -> None:
    reasons: list[StopReason] = []
    gate = new_gate(look=lambda: reasons[0] if reasons else None)
    if held_by == "pause":
        gate.hold(LONG)
    else:
        fail(gate, FAILURES)
    waiting = [sends(gate) for _ in range(SENDERS)]
    assert are_held(waiting)
    reasons.append(STOPPED)
    assert {sender.result(PATIENCE) for sender in waiting} == {STOPPED}


def test_a_pause_holds_all_senders_and_the_longest_counts() -> None:
    gate = new_gate()
    ends_at = time.monotonic() + 3 * SHORT
    gate.hold(3 * SHORT)
    gate.hold(SHORT)

    def passes_at(_: int) -> float:
        passage(gate)
        return time.monotonic()

    with ThreadPoolExecutor(SENDERS) as pool:
        assert min(pool.map(passes_at, range(SENDERS))) >= ends_at


def test_a_pause_holds_a_probe_too(sends: Sends) -> None:
    gate = new_gate(probe_seconds=SHORT)
    fail(gate, FAILURES)
    gate.hold(LONG)
    assert are_held([sends(gate)])


def test_an_outage_is_told_when_it_begins_and_when_it_ends(
    caplog: pytest.LogCaptureFixture,
) -> None:
    gate = new_gate(probe_seconds=SHORT)
    with caplog.at_level(logging.WARNING):
        fail(gate, FAILURES + 2)
        gate.report(passage(gate), None)
    down, up = caplog.messages
    assert down == (
        "Stage 1 is down (3 transient failures in a row, the last TIMEOUT: "
        "no answer within 8000 ms): sending waits, and probes every 0.1 s"
    )
    assert up.startswith("Stage 1 is back after 0.")
