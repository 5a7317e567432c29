"""Many senders, one Stage 1 that falters, is down, comes back, or asks for a pause."""

import logging
import time
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.errors import HUB_UNAVAILABLE, RUN_STOPPED, ErrorClass, ItemError, StopReason
from tasks.hub.gate import CircuitBreaker, Permit, SendGate

TRANSIENT = ItemError("TIMEOUT", "no answer within 8000 ms", ErrorClass.TRANSIENT)
PERMANENT = ItemError("NOT_FOUND", "no", ErrorClass.PERMANENT)
STOPPED = StopReason("somebody stopped it")
FAILURES = 3
PROBE = 5.0
LIMIT = 60.0
NEVER = float("inf")
SHORT = 0.05
LONG = 60.0
PATIENCE = 30.0
SENDERS = 8

Admission = Permit | StopReason
Sends = Callable[[SendGate], "Future[Admission]"]


def new_breaker(failures: int = FAILURES) -> CircuitBreaker:
    return CircuitBreaker(failures=failures, probe_seconds=PROBE, limit_seconds=LIMIT)


def trip(breaker: CircuitBreaker, now: float = 0.0) -> None:
    for _ in range(FAILURES):
        assert breaker.fail(breaker.permit(), TRANSIENT, now) is None
    assert breaker.next_permit_at == now + PROBE


@given(
    failures=st.integers(1, 4),
    outcomes=st.lists(st.sampled_from([None, PERMANENT, TRANSIENT, TRANSIENT, TRANSIENT])),
)
def test_only_a_row_that_is_long_enough_trips_the_breaker(
    failures: int, outcomes: list[ItemError | None]
) -> None:
    breaker = new_breaker(failures)
    gate = SendGate(lambda: None, breaker)
    row = 0
    for error in outcomes:
        gate.report(permit(gate), error)
        row = row + 1 if error is TRANSIENT else 0
        assert (breaker.next_permit_at > 0) == (row == failures)
        if row == failures:
            return


def test_while_a_probe_is_under_way_there_is_no_permit() -> None:
    breaker = new_breaker()
    trip(breaker)
    breaker.permit()
    assert breaker.next_permit_at == NEVER


def test_a_probe_that_fails_is_followed_by_the_next_an_interval_later() -> None:
    breaker = new_breaker()
    trip(breaker)
    for now in (PROBE, 20.0, 30.0):
        assert breaker.fail(breaker.permit(), TRANSIENT, now) is None
        assert breaker.next_permit_at == now + PROBE


def test_a_probe_without_a_result_makes_room_for_another_at_once() -> None:
    breaker = new_breaker()
    trip(breaker)
    breaker.abandon(breaker.permit())
    assert breaker.next_permit_at == 0.0


def test_a_request_without_a_result_counts_for_nothing() -> None:
    breaker = new_breaker()
    before = breaker.permit()
    breaker.abandon(before)
    trip(breaker)
    breaker.permit()
    breaker.abandon(before)
    assert breaker.next_permit_at == NEVER


def test_a_failure_from_before_it_tripped_is_no_failed_probe() -> None:
    breaker = new_breaker()
    before = breaker.permit()
    trip(breaker)
    assert breaker.fail(before, TRANSIENT, 1.0) is None
    assert breaker.next_permit_at == PROBE, "the late failure put the probe off"
    probe = breaker.permit()
    assert breaker.fail(before, TRANSIENT, LIMIT) is None
    assert breaker.next_permit_at == NEVER, "the late failure ended the probe"
    assert breaker.fail(probe, TRANSIENT, LIMIT) is not None


def test_a_failure_from_before_it_recovered_is_not_counted() -> None:
    breaker = new_breaker()
    before = breaker.permit()
    trip(breaker)
    breaker.succeed(PROBE)
    for _ in range(FAILURES):
        assert breaker.fail(before, TRANSIENT, PROBE) is None
    assert breaker.next_permit_at == 0.0
    assert not breaker.has_failures


def test_a_late_success_shows_too_that_stage_1_is_up() -> None:
    breaker = new_breaker()
    trip(breaker)
    probe = breaker.permit()
    breaker.succeed(PROBE)
    assert breaker.next_permit_at == 0.0
    breaker.fail(probe, TRANSIENT, PROBE)
    for _ in range(FAILURES - 1):
        breaker.fail(breaker.permit(), TRANSIENT, PROBE)
    assert breaker.next_permit_at == 0.0


def test_the_first_probe_that_fails_after_the_limit_stops_the_run() -> None:
    breaker = new_breaker()
    trip(breaker)
    assert breaker.fail(breaker.permit(), TRANSIENT, LIMIT - 0.1) is None
    assert breaker.fail(breaker.permit(), TRANSIENT, LIMIT + 0.2) == StopReason(
        "HUB_UNAVAILABLE: Stage 1 was down for 60.2 s, "
        "the last failure TIMEOUT: no answer within 8000 ms",
        HUB_UNAVAILABLE,
    )


def test_without_a_limit_to_wait_for_the_run_stops_as_it_trips() -> None:
    breaker = CircuitBreaker(failures=1, probe_seconds=PROBE, limit_seconds=0.0)
    assert breaker.fail(breaker.permit(), TRANSIENT, 5.0) is not None


def test_the_limit_counts_anew_after_each_recovery() -> None:
    breaker = new_breaker()
    for began in (0.0, 50.0, 100.0):
        trip(breaker, began)
        assert breaker.fail(breaker.permit(), TRANSIENT, began + 40.0) is None
        breaker.succeed(began + 45.0)


def test_an_outage_is_told_when_it_begins_and_when_it_ends(
    caplog: pytest.LogCaptureFixture,
) -> None:
    breaker = new_breaker()
    with caplog.at_level(logging.WARNING):
        trip(breaker)
        breaker.fail(breaker.permit(), TRANSIENT, PROBE)
        breaker.succeed(12.34)
        breaker.succeed(20.0)
    assert caplog.messages == [
        "Stage 1 is down (3 transient failures in a row, the last TIMEOUT: "
        "no answer within 8000 ms): sending waits, and probes every 5 s",
        "Stage 1 is back after 12.3 s: sending goes on",
    ]


def new_gate(
    *, probe_seconds: float = LONG, look: Callable[[], StopReason | None] = lambda: None
) -> SendGate:
    breaker = CircuitBreaker(
        failures=FAILURES, probe_seconds=probe_seconds, limit_seconds=10 * LONG
    )
    return SendGate(look, breaker)


@pytest.fixture
def sends() -> Iterator[Sends]:
    """Let a sender on a thread of its own come to a gate."""
    gates = []
    with ThreadPoolExecutor(2 * SENDERS) as pool:

        def send(gate: SendGate) -> "Future[Admission]":
            gates.append(gate)
            return pool.submit(gate.admit)

        yield send
        for gate in gates:
            gate.close(StopReason("the test is over"))


def permit(gate: SendGate) -> Permit:
    admission = gate.admit()
    assert isinstance(admission, Permit)
    return admission


def fail(gate: SendGate, times: int = 1) -> None:
    """Let requests be admitted and fail, one after the other."""
    for _ in range(times):
        assert gate.report(permit(gate), TRANSIENT) is None


def are_held(senders: list["Future[Admission]"]) -> bool:
    """Return whether none of the senders is admitted for a while."""
    wait(senders, timeout=3 * SHORT, return_when=FIRST_COMPLETED)
    return not any(sender.done() for sender in senders)


def the_only_one_admitted(senders: list["Future[Admission]"]) -> Permit:
    wait(senders, timeout=PATIENCE, return_when=FIRST_COMPLETED)
    (done,) = [sender for sender in senders if sender.done()]
    assert are_held([sender for sender in senders if sender is not done])
    admission = done.result()
    assert isinstance(admission, Permit)
    return admission


def all_admitted(senders: list["Future[Admission]"]) -> bool:
    return all(isinstance(sender.result(PATIENCE), Permit) for sender in senders)


def test_failures_in_a_row_hold_all_senders(sends: Sends) -> None:
    gate = new_gate()
    fail(gate, FAILURES)
    assert are_held([sends(gate) for _ in range(SENDERS)])


@pytest.mark.parametrize("answer", [None, PERMANENT], ids=["success", "refusal"])
def test_one_of_those_who_wait_probes_and_an_answer_lets_all_go_on(
    answer: ItemError | None, sends: Sends
) -> None:
    gate = new_gate(probe_seconds=SHORT)
    fail(gate, FAILURES)
    waiting = [sends(gate) for _ in range(SENDERS)]
    assert gate.report(the_only_one_admitted(waiting), answer) is None
    assert all_admitted(waiting)


def test_each_probe_waits_an_interval(sends: Sends) -> None:
    gate = new_gate(probe_seconds=SHORT)
    began = time.monotonic()
    fail(gate, FAILURES + 3)
    permit(gate)
    assert time.monotonic() - began >= 4 * SHORT
    assert are_held([sends(gate)])


def test_a_probe_of_which_nothing_is_known_makes_room_for_another(sends: Sends) -> None:
    gate = new_gate(probe_seconds=SHORT)
    fail(gate, FAILURES)
    probe = permit(gate)
    waiting = [sends(gate) for _ in range(SENDERS)]
    assert are_held(waiting)
    gate.abandon(probe)
    assert the_only_one_admitted(waiting)


def test_a_late_success_lets_all_who_wait_go_on(sends: Sends) -> None:
    gate = new_gate()
    in_flight = permit(gate)
    fail(gate, FAILURES)
    waiting = [sends(gate) for _ in range(SENDERS)]
    assert are_held(waiting)
    gate.report(in_flight, None)
    assert all_admitted(waiting)


def test_a_probe_that_fails_after_the_limit_stops_the_run() -> None:
    breaker = CircuitBreaker(failures=FAILURES, probe_seconds=SHORT, limit_seconds=SHORT)
    gate = SendGate(lambda: None, breaker)
    fail(gate, FAILURES)
    reason = gate.report(permit(gate), TRANSIENT)
    assert reason is not None
    assert reason.code == HUB_UNAVAILABLE


def test_closing_is_noticed_by_all_who_wait(sends: Sends) -> None:
    gate = new_gate()
    fail(gate, FAILURES)
    waiting = [sends(gate) for _ in range(SENDERS)]
    assert are_held(waiting)
    gate.close(STOPPED)
    gate.close(StopReason("a later reason", HUB_UNAVAILABLE))
    assert {sender.result(PATIENCE) for sender in waiting} == {STOPPED}
    assert gate.admit() == gate.closed_because == STOPPED
    assert not gate.is_open()
    assert STOPPED.code == RUN_STOPPED


@pytest.mark.parametrize("held_by", ["failures", "pause"])
def test_what_another_process_closes_is_noticed_while_waiting(
    held_by: str, sends: Sends, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tasks.hub.gate._LOOK_SECONDS", SHORT)
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

    def admitted_at(_: int) -> float:
        permit(gate)
        return time.monotonic()

    with ThreadPoolExecutor(SENDERS) as pool:
        assert min(pool.map(admitted_at, range(SENDERS))) >= ends_at


def test_a_pause_holds_a_probe_too(sends: Sends) -> None:
    gate = new_gate(probe_seconds=SHORT)
    fail(gate, FAILURES)
    gate.hold(LONG)
    assert are_held([sends(gate)])
