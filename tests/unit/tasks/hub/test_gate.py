"""Many senders, one Stage 1 that falters, is down, comes back, or asks for a pause."""

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.errors import HUB_UNAVAILABLE, RUN_STOPPED, ErrorClass, ItemError, StopReason
from tasks.hub.answer import UpsertOutcome
from tasks.hub.breaker import CircuitBreaker, Permit
from tasks.hub.gate import SendGate

NAME = "ADMIN_TENANTS_UPSERT_URL"
IN = UpsertOutcome(None, 200, "sync-1", 1.0)
TRANSIENT = UpsertOutcome(
    ItemError("TIMEOUT", "no answer within 8000 ms", ErrorClass.TRANSIENT), None, None, 1.0
)
PERMANENT = UpsertOutcome(ItemError("NOT_FOUND", "no", ErrorClass.PERMANENT), 404, None, 1.0)
BUSY = UpsertOutcome(ItemError("SERVER_ERROR", "busy", ErrorClass.TRANSIENT), 503, None, 1.0)
THROTTLED = UpsertOutcome(ItemError("HTTP_429", "slow", ErrorClass.TRANSIENT), 429, None, 1.0)
STOPPED = StopReason("somebody stopped it")
FAILURES = 3
SHORT = 0.05
LONG = 60.0
PATIENCE = 30.0
SENDERS = 8

Admission = Permit | StopReason
Sends = Callable[[SendGate], "Future[Admission]"]


def new_gate(
    *,
    failures: int = FAILURES,
    probe_seconds: float = LONG,
    limit_seconds: float = 10 * LONG,
    look: Callable[[], StopReason | None] = lambda: None,
    tell: Callable[[float | None], None] = lambda _: None,
    longest_pause_seconds: float = LONG,
) -> SendGate:
    breaker = CircuitBreaker(
        NAME, failures=failures, probe_seconds=probe_seconds, limit_seconds=limit_seconds
    )
    return SendGate(NAME, look, tell, breaker, longest_pause_seconds=longest_pause_seconds)


def pausing(outcome: UpsertOutcome, seconds: float) -> UpsertOutcome:
    return replace(outcome, retry_after_seconds=seconds)


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


@given(
    failures=st.integers(1, 4),
    outcomes=st.lists(st.sampled_from([IN, PERMANENT, TRANSIENT, TRANSIENT, TRANSIENT])),
)
def test_only_a_row_that_is_long_enough_trips_the_breaker(
    failures: int, outcomes: list[UpsertOutcome]
) -> None:
    rates: list[float | None] = []
    gate = new_gate(failures=failures, tell=rates.append)
    row = 0
    for outcome in outcomes:
        gate.report(permit(gate), outcome)
        row = row + 1 if outcome is TRANSIENT else 0
        assert rates == ([0.0] if row == failures else [])
        if row == failures:
            return


def test_failures_in_a_row_hold_all_senders(sends: Sends) -> None:
    gate = new_gate()
    fail(gate, FAILURES)
    assert are_held([sends(gate) for _ in range(SENDERS)])


@pytest.mark.parametrize("answer", [IN, PERMANENT], ids=["success", "refusal"])
def test_one_of_those_who_wait_probes_and_an_answer_lets_all_go_on(
    answer: UpsertOutcome, sends: Sends
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
    gate.report(in_flight, IN)
    assert all_admitted(waiting)


def test_a_probe_that_fails_after_the_limit_closes_the_endpoint() -> None:
    gate = new_gate(probe_seconds=SHORT, limit_seconds=SHORT)
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
        gate.report(permit(gate), pausing(TRANSIENT, LONG))
    else:
        fail(gate, FAILURES)
    waiting = [sends(gate) for _ in range(SENDERS)]
    assert are_held(waiting)
    reasons.append(STOPPED)
    assert {sender.result(PATIENCE) for sender in waiting} == {STOPPED}


def test_no_sender_goes_on_while_one_looks_what_another_process_has_closed(sends: Sends) -> None:
    looks, is_told = threading.Event(), threading.Event()

    def look() -> StopReason:
        looks.set()
        is_told.wait(PATIENCE)
        return STOPPED

    gate = new_gate(look=look)
    waiting = [sends(gate)]
    assert looks.wait(PATIENCE)
    waiting += [sends(gate) for _ in range(SENDERS - 1)]
    assert are_held(waiting)
    is_told.set()
    assert {sender.result(PATIENCE) for sender in waiting} == {STOPPED}


def test_a_pause_holds_all_senders_and_the_longest_counts() -> None:
    gate = new_gate()
    first, second = permit(gate), permit(gate)
    ends_at = time.monotonic() + 3 * SHORT
    gate.report(first, pausing(TRANSIENT, 3 * SHORT))
    gate.report(second, pausing(TRANSIENT, SHORT))

    def admitted_at(_: int) -> float:
        permit(gate)
        return time.monotonic()

    with ThreadPoolExecutor(2) as pool:
        assert min(pool.map(admitted_at, range(2))) >= ends_at


def test_a_pause_is_kept_up_to_the_limit() -> None:
    gate = new_gate(longest_pause_seconds=SHORT)
    gate.report(permit(gate), pausing(TRANSIENT, 1000 * LONG))
    assert permit(gate)


def test_a_pause_holds_a_probe_too(sends: Sends) -> None:
    gate = new_gate(probe_seconds=SHORT)
    fail(gate, FAILURES - 1)
    gate.report(permit(gate), pausing(TRANSIENT, LONG))
    assert are_held([sends(gate)])


@pytest.mark.parametrize("outcome", [BUSY, THROTTLED, pausing(TRANSIENT, 0.0)])
def test_an_endpoint_that_throttles_gets_requests_apart(
    outcome: UpsertOutcome, sends: Sends, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tasks.hub.pace.LEAST_RATE", 1 / LONG)
    gate = new_gate()
    gate.report(permit(gate), outcome)
    assert are_held([sends(gate) for _ in range(SENDERS)])


def test_a_request_that_did_not_wait_for_its_turn_does_not_cut_the_rate() -> None:
    rates: list[float | None] = []
    gate = new_gate(tell=rates.append)
    gate.report(permit(gate), replace(THROTTLED, was_resent=True))
    assert rates == []
    gate.report(permit(gate), THROTTLED)
    assert len(rates) == 1


def test_what_was_under_way_when_the_rate_was_cut_does_not_cut_it_again_nor_trip_the_breaker(
    caplog: pytest.LogCaptureFixture,
) -> None:
    rates: list[float | None] = []
    gate = new_gate(tell=rates.append)
    under_way = [permit(gate) for _ in range(5 * FAILURES)]
    for each in under_way:
        assert gate.report(each, THROTTLED) is None
    assert rates == [pytest.approx(1.0, rel=0.3)]
    assert caplog.messages == [
        f"{NAME} throttles (HTTP_429: slow): requests go as fast as it takes them"
    ]


def test_an_endpoint_that_only_throttles_is_down_in_the_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("tasks.hub.pace.LEAST_RATE", 100.0)
    rates: list[float | None] = []
    gate = new_gate(probe_seconds=SHORT, limit_seconds=SHORT, tell=rates.append)
    reason = None
    while reason is None:
        reason = gate.report(permit(gate), THROTTLED)
    assert reason.code == HUB_UNAVAILABLE
    assert rates[-1] == 0.0, "it does not say that it waits"


def test_it_tells_when_it_waits_and_when_nothing_is_held_any_more() -> None:
    rates: list[float | None] = []
    gate = new_gate(probe_seconds=SHORT, tell=rates.append)
    fail(gate, FAILURES)
    assert rates == [0.0]
    gate.report(permit(gate), IN)
    assert rates == [0.0, None]


def test_an_endpoint_that_is_back_is_held_no_longer_than_one_that_is_new(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("tasks.hub.pace._DOUBLING_SECONDS", SHORT / 10)
    rates: list[float | None] = []
    gate = new_gate(probe_seconds=SHORT, tell=rates.append)
    for _ in range(FAILURES):
        gate.report(permit(gate), BUSY)
    gate.report(permit(gate), IN)
    began = time.monotonic()
    while rates[-1] is not None:
        gate.report(permit(gate), IN)
        assert time.monotonic() - began < PATIENCE
