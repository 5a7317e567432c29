"""The breaker of an endpoint that falters, is down, and comes back."""

import logging

import pytest

from tasks.errors import HUB_UNAVAILABLE, ErrorClass, ItemError, StopReason
from tasks.hub.breaker import CircuitBreaker

NAME = "ADMIN_TENANTS_UPSERT_URL"
TRANSIENT = ItemError("TIMEOUT", "no answer within 8000 ms", ErrorClass.TRANSIENT)
FAILURES = 3
PROBE = 5.0
LIMIT = 60.0
NEVER = float("inf")


def new_breaker(failures: int = FAILURES) -> CircuitBreaker:
    return CircuitBreaker(NAME, failures=failures, probe_seconds=PROBE, limit_seconds=LIMIT)


def trip(breaker: CircuitBreaker, now: float = 0.0) -> None:
    for _ in range(FAILURES):
        assert breaker.fail(breaker.permit(), TRANSIENT, now) is None
    assert breaker.has_tripped
    assert breaker.next_permit_at == now + PROBE


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


def test_a_late_success_shows_too_that_the_endpoint_is_up() -> None:
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
        "HUB_UNAVAILABLE: ADMIN_TENANTS_UPSERT_URL was down for 60.2 s, "
        "the last failure TIMEOUT: no answer within 8000 ms",
        HUB_UNAVAILABLE,
    )


def test_without_a_limit_to_wait_for_the_run_stops_as_it_trips() -> None:
    breaker = CircuitBreaker(NAME, failures=1, probe_seconds=PROBE, limit_seconds=0.0)
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
        "ADMIN_TENANTS_UPSERT_URL is down (3 transient failures in a row, the last TIMEOUT: "
        "no answer within 8000 ms): sending waits, and probes every 5 s",
        "ADMIN_TENANTS_UPSERT_URL is back after 12.3 s: sending goes on",
    ]


def test_what_was_under_way_counts_for_nothing_once_it_is_disregarded() -> None:
    breaker = new_breaker()
    before = breaker.permit()
    assert breaker.counts(before)
    breaker.disregard()
    assert not breaker.counts(before)
    for _ in range(FAILURES):
        assert breaker.fail(before, TRANSIENT, 0.0) is None
    assert not breaker.has_tripped
    trip(breaker)


def test_disregarding_makes_no_room_for_a_second_probe() -> None:
    breaker = new_breaker()
    trip(breaker)
    breaker.permit()
    breaker.disregard()
    assert breaker.next_permit_at == NEVER
