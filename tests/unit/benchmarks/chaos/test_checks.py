"""The checks of the chaos benchmark see each kind of violation, and none where there is none."""

from dataclasses import replace
from typing import Any

import pytest

from scripts.local.hub.request_log import SeenRequest
from tests.benchmarks.chaos.checks import Evidence, violations
from tests.benchmarks.chaos.ledger import Accepted, ItemKey, Ledger, Sender, Silence
from tests.benchmarks.chaos.operator import PrefectState
from tests.benchmarks.chaos.workload import Items

GOOD, BAD = ItemKey("tenant", "good"), ItemKey("tenant", "bad")
ACCEPTED = Accepted("a request id", {"id": "good"})


def request(received_at: float = 0, **changes: Any) -> SeenRequest:
    """A request that Stage 1 confirmed half a second after it came."""
    seen = SeenRequest("tenant", "good", "a request id", "a digest", 1, received_at)
    confirmed = {"answered_at": received_at + 0.5, "status": 200, "outcome": "stored"}
    return replace(seen, **{**confirmed, **changes})


def step(item: ItemKey, *, ok: bool) -> dict[str, Any]:
    error = None if ok else {"code": "VALIDATION_ERROR", "class": "permanent"}
    return {
        "run_id": 1,
        "entity_type": item.entity_type,
        "natural_key": item.natural_key,
        "ok": ok,
        "attempts": int(ok),
        "error": error,
    }


def run(**changes: Any) -> dict[str, Any]:
    counts = {"total": 2, "success": 1, "failed": 1, "skipped": 0}
    ended = {"status": "partial", "finished_at": "an hour ago"}
    stage = {"entity_type": "tenant", "unchanged": 0, **counts, **ended}
    return {
        "_id": 1,
        "flow_run_id": "a flow run",
        "mode": "full",
        "attempt": 1,
        "totals": counts,
        "stages": [stage],
        **ended,
        **changes,
    }


@pytest.fixture
def evidence() -> Evidence:
    return Evidence(
        items=Items({GOOD: ACCEPTED}, frozenset({BAD})),
        ledger=Ledger([request()], {GOOD: ACCEPTED}),
        runs=[run()],
        steps=[step(GOOD, ok=True), step(BAD, ok=False)],
        states={"a flow run": PrefectState("FAILED", "Partial", "")},
    )


def the_violations(evidence: Evidence) -> str:
    found = violations(evidence)
    assert found, "it was not seen"
    return "; ".join(found)


def violations_with_requests(
    evidence: Evidence, *requests: SeenRequest, most_lost: int = 0
) -> list[str]:
    ledger = replace(evidence.ledger, requests=requests)
    return violations(replace(evidence, ledger=ledger, most_lost=most_lost))


def test_a_true_trail_has_no_violation(evidence: Evidence) -> None:
    assert violations(evidence) == []


def test_an_item_that_is_not_in(evidence: Evidence) -> None:
    del evidence.ledger.items[GOOD]
    assert the_violations(evidence) == "1 items are not in, such as tenant good"


def test_an_item_at_another_version(evidence: Evidence) -> None:
    evidence.ledger.items[GOOD] = replace(ACCEPTED, request_id="an older one")
    assert "at another version" in the_violations(evidence)


def test_an_item_that_should_not_be_in(evidence: Evidence) -> None:
    evidence.ledger.items[BAD] = ACCEPTED
    assert "should not be" in the_violations(evidence)


def test_two_steps_of_one_item(evidence: Evidence) -> None:
    twice = replace(evidence, steps=[*evidence.steps, step(GOOD, ok=True)])
    told = the_violations(twice)
    assert "more than one step" in told
    assert "its steps say" in told


def test_a_step_that_is_missing(evidence: Evidence) -> None:
    told = the_violations(replace(evidence, steps=evidence.steps[1:]))
    assert "1 steps and 0 unchanged of 2 items" in told
    assert "no successful step in any run" in told


def test_a_status_that_is_not_prefects(evidence: Evidence) -> None:
    told = the_violations(replace(evidence, runs=[run(status="running", finished_at=None)]))
    assert told == "run 1 (full, running), Prefect says Partial"


def test_a_run_without_a_document(evidence: Evidence) -> None:
    told = the_violations(replace(evidence, runs=[], steps=[step(GOOD, ok=True)]))
    assert told == "flow run a flow run has no document; Prefect says Partial"


def test_a_stage_that_says_running_for_ever(evidence: Evidence) -> None:
    stage = {**run()["stages"][0], "status": "running", "finished_at": None}
    told = the_violations(replace(evidence, runs=[run(stages=[stage])]))
    assert "stage tenant still says running" in told


def test_two_bodies_under_one_request_id(evidence: Evidence) -> None:
    again = request(digest="another digest")
    told = violations_with_requests(evidence, request(), again, most_lost=1)
    assert "came with 2 bodies" in told[0]


def test_more_sent_again_than_records_can_be_lost(evidence: Evidence) -> None:
    again = [request(received_at=n) for n in range(1, 102)]
    (told,) = violations_with_requests(evidence, request(), *again, most_lost=101)
    assert "101 items were sent again" in told


@pytest.mark.parametrize(
    "unconfirmed",
    [{"client_left": True}, {"outcome": "dropped"}, {"answered_at": 1_000.0}],
    ids=["nobody listened", "refused", "not yet answered"],
)
def test_what_no_client_was_told_may_be_sent_again(
    evidence: Evidence, unconfirmed: dict[str, Any]
) -> None:
    requests = [request(received_at=n, **unconfirmed) for n in range(102)]
    assert violations_with_requests(evidence, *requests, most_lost=101) == []


CUT = request(outcome="dropped", status=None)


@pytest.mark.parametrize(
    ("requests", "most_lost", "is_true"),
    [
        ([CUT, request()], 0, True),
        ([CUT, CUT, request()], 0, False),
        ([CUT, CUT, request()], 1, True),
        ([request(), request()], 0, False),
        ([request(), CUT], 0, False),
    ],
    ids=["stale", "not twice", "a lost record", "not cut", "cut too late"],
)
def test_only_a_request_that_was_cut_may_come_again_in_the_same_attempt(
    evidence: Evidence, requests: list[SeenRequest], most_lost: int, *, is_true: bool
) -> None:
    told = violations_with_requests(evidence, *requests, most_lost=most_lost)
    if is_true:
        assert told == []
    else:
        assert told == ["1 items had more requests than attempts on record, such as tenant good"]


FIRST, RETRIED, SECOND = Sender(1), Sender(1, 2), Sender(2)
TWO_RUNS = {
    "a flow run": PrefectState("FAILED", "Partial", ""),
    "the next": PrefectState("FAILED", "Partial", ""),
}


def violations_with_senders(
    evidence: Evidence, *senders: Sender | None, attempts: int = 1, **changes: Any
) -> list[str]:
    """The violations of a round with two runs, which send one request a second."""
    requests = [request(received_at=n, client_left=True) for n in range(len(senders))]
    second = run(_id=2, flow_run_id="the next")
    steps = [{**each, "run_id": number} for number in (1, 2) for each in evidence.steps]
    return violations(
        replace(
            evidence,
            ledger=replace(evidence.ledger, requests=requests, senders=senders),
            runs=[run(attempt=attempts), second],
            steps=steps,
            states=TWO_RUNS,
            most_lost=len(senders),
            **changes,
        )
    )


def test_a_run_that_was_not_started_here(evidence: Evidence) -> None:
    told = the_violations(replace(evidence, states={}))
    assert told == "run 1 (full, partial) was not started here"


def test_a_run_that_was_deleted_in_prefect_is_cancelled(evidence: Evidence) -> None:
    deleted = {"a flow run": PrefectState("DELETED", "Deleted", "")}
    assert "Prefect says Deleted" in the_violations(replace(evidence, states=deleted))
    cancelled = replace(evidence, states=deleted, runs=[run(status="cancelled")])
    assert violations(cancelled) == []


@pytest.mark.parametrize(
    ("senders", "attempts", "is_true"),
    [
        ([FIRST, FIRST, SECOND, SECOND], 1, True),
        ([FIRST, RETRIED, FIRST, None, RETRIED, SECOND], 1, True),
        ([FIRST, SECOND, FIRST], 1, False),
        ([FIRST, SECOND, FIRST], 2, True),
        ([FIRST, SECOND, FIRST, SECOND, FIRST], 3, False),
    ],
    ids=["in turn", "the same run", "interleaved", "went on later", "the other began twice"],
)
def test_one_run_sends_at_a_time(
    evidence: Evidence, senders: list[Sender | None], attempts: int, *, is_true: bool
) -> None:
    told = violations_with_senders(evidence, *senders, attempts=attempts)
    assert (told == []) == is_true, told
    assert all("sent in turn with others" in each for each in told)


@pytest.mark.parametrize(
    ("silence", "is_true"),
    [
        (Silence(FIRST, since=0.5, until=9.5), False),
        (Silence(FIRST, since=1.5, until=9.5), True),
        (Silence(FIRST, since=0.5, until=8.5), True),
        (Silence(RETRIED, since=0.5), True),
    ],
    ids=["nine requests", "later", "ended", "another sender"],
)
def test_who_has_to_be_silent_sends_one_request_a_sender(
    evidence: Evidence, silence: Silence, *, is_true: bool
) -> None:
    told = violations_with_senders(evidence, *10 * [FIRST], silences=[silence])
    assert (told == []) == is_true
    assert is_true or told == ["sender 1.1 sent 9 requests when it had to be silent"]


@pytest.mark.parametrize(("sender", "is_true"), [(FIRST, True), (RETRIED, False)])
def test_what_a_sleeper_brings_in_late_needs_no_step(
    evidence: Evidence, sender: Sender, *, is_true: bool
) -> None:
    steps = [{**evidence.steps[0], "ok": False, "error": evidence.steps[1]["error"]}]
    ledger = replace(evidence.ledger, senders=[FIRST])
    silence = Silence(sender, since=-1)
    told = violations(replace(evidence, steps=steps, ledger=ledger, silences=[silence]))
    assert ("1 items have no successful step" in "; ".join(told)) == (not is_true)


def test_a_run_that_goes_on_after_a_later_one_may_send_what_that_has_sent() -> None:
    requests = [request(received_at=n) for n in range(2)]
    assert Ledger(requests, {}, [SECOND, FIRST]).resent == 0
    assert Ledger(requests, {}, [FIRST, SECOND]).resent == 1
    assert Ledger(requests, {}).resent == 1
