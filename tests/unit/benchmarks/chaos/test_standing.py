"""Standing faults of the chaos benchmark: how they are drawn, and what has to come of them."""

import json
from dataclasses import asdict, replace
from typing import Any

import pytest

from scripts.local.hub.request_log import SeenRequest
from tasks.errors import HUB_UNAVAILABLE
from tests.benchmarks.chaos.checks import Evidence
from tests.benchmarks.chaos.events import Event
from tests.benchmarks.chaos.ledger import Accepted, ItemKey, Ledger
from tests.benchmarks.chaos.operator import PrefectState
from tests.benchmarks.chaos.rounds import RoundPlan
from tests.benchmarks.chaos.standing import EndpointDown, Limiter
from tests.benchmarks.chaos.standing_checks import few_are_throttled, goes_on_without
from tests.benchmarks.chaos.workload import Items

ITEMS = 1_000
SEEDS = range(100)
STANDING = [Event.LIMITER, Event.ENDPOINT_DOWN]
TENANT, CLIENT = ItemKey("tenant", "t"), ItemKey("client", "c")
OF_TENANT, OF_CLIENT = ItemKey("subtenant", "s"), ItemKey("domain", "d")
VALID = {
    TENANT: Accepted("1", {"id": "t"}),
    CLIENT: Accepted("2", {"id": "c"}),
    OF_TENANT: Accepted("3", {"id": "s", "tenant_id": "t"}),
    OF_CLIENT: Accepted("4", {"host": "d", "tenant_id": "t", "client_id": "c"}),
}
HELD = {item: VALID[item] for item in (TENANT, OF_TENANT)}


def request(item: ItemKey, status: int, outcome: str) -> SeenRequest:
    seen = SeenRequest(item.entity_type, item.natural_key, "a request id", "a digest", 1, 0)
    return replace(seen, answered_at=1, status=status, outcome=outcome)


def step(item: ItemKey, code: str | None = None) -> dict[str, Any]:
    error = {"code": code} if code else None
    return {"run_id": 1, "entity_type": item.entity_type, "ok": error is None, "error": error}


def stage(entity_type: str, status: str) -> dict[str, str]:
    return {"entity_type": entity_type, "status": status}


@pytest.fixture
def evidence() -> Evidence:
    """The evidence of a run while the endpoint of the clients was down."""
    stages = [stage("tenant", "success"), stage("client", "failed"), stage("domain", "failed")]
    return Evidence(
        Items(VALID, frozenset()),
        Ledger([request(OF_CLIENT, 404, "NOT_FOUND")], dict(HELD)),
        [{"_id": 1, "status": "partial", "stages": stages}],
        [step(TENANT), step(CLIENT, HUB_UNAVAILABLE), step(OF_CLIENT, "NOT_FOUND")],
        {},
    )


@pytest.fixture
def states() -> dict[str, PrefectState]:
    return {
        "tenant": PrefectState("COMPLETED", "Completed", ""),
        "client": PrefectState("FAILED", "Stopped", ""),
        "domain": PrefectState("FAILED", "Failed", ""),
    }


def the_violation(evidence: Evidence, states: dict[str, PrefectState]) -> str:
    (told,) = goes_on_without("client", evidence, states)
    return told


@pytest.mark.parametrize("event", STANDING)
def test_the_same_seed_makes_the_same_plan_and_others_another(event: Event) -> None:
    plans = [RoundPlan.drawn(seed, event, ITEMS) for seed in SEEDS]
    assert plans == [RoundPlan.drawn(seed, event, ITEMS) for seed in SEEDS]
    assert len({plan.standing for plan in plans}) > 5
    assert all(plan.events == {event} and not plan.most_lost for plan in plans)


@pytest.mark.parametrize("event", STANDING)
def test_a_plan_says_what_stands_and_goes_into_json(event: Event) -> None:
    plan = RoundPlan.drawn(1, event, ITEMS)
    assert str(event) in str(plan)
    assert json.loads(json.dumps(asdict(plan)))["standing"]["event"] == event


def test_a_limiter_refuses_in_all_ways_and_gets_no_more_items_than_it_can_take() -> None:
    plans = [RoundPlan.drawn(seed, Event.LIMITER, 10_000) for seed in SEEDS]
    limiters = [plan.standing for plan in plans if isinstance(plan.standing, Limiter)]
    ways = {(limiter.status, limiter.retry_after) for limiter in limiters}
    assert ways == {(503, None), (503, "1"), (429, None), (429, "1")}
    assert {
        plan.items // each.requests_per_second for plan, each in zip(plans, limiters, strict=True)
    } == {15}


def test_an_endpoint_goes_down_in_all_ways() -> None:
    plans = [RoundPlan.drawn(seed, Event.ENDPOINT_DOWN, ITEMS) for seed in SEEDS]
    assert len({plan.standing for plan in plans}) == 2 * 5
    assert EndpointDown("client", drops=True).fault.drop
    assert EndpointDown("client", drops=False).fault.status == 500


def test_a_limiter_that_refuses_a_fifth(evidence: Evidence) -> None:
    refused, taken = request(TENANT, 429, "fault"), request(TENANT, 200, "stored")
    few = replace(evidence, ledger=replace(evidence.ledger, requests=[refused, *5 * [taken]]))
    many = replace(evidence, ledger=replace(evidence.ledger, requests=[refused, *4 * [taken]]))
    assert list(few_are_throttled(few)) == []
    assert list(few_are_throttled(many)) == ["1 of 5 requests were throttled"]


def test_a_run_that_went_on_without_an_endpoint(
    evidence: Evidence, states: dict[str, PrefectState]
) -> None:
    assert list(goes_on_without("client", evidence, states)) == []


def test_a_run_that_says_all_is_well(evidence: Evidence, states: dict[str, PrefectState]) -> None:
    evidence.runs[0]["status"] = "success"
    assert "ended as success" in the_violation(evidence, states)


def test_a_stage_that_was_not_stopped(evidence: Evidence, states: dict[str, PrefectState]) -> None:
    states["client"] = PrefectState("FAILED", "Failed", "")
    assert "stage client is Failed" in the_violation(evidence, states)


def test_another_stage_that_was_stopped(
    evidence: Evidence, states: dict[str, PrefectState]
) -> None:
    states["domain"] = PrefectState("FAILED", "Stopped", "")
    assert "stage domain is Stopped" in the_violation(evidence, states)


def test_a_stage_that_did_not_fail(evidence: Evidence, states: dict[str, PrefectState]) -> None:
    evidence.runs[0]["stages"][1]["status"] = "success"
    assert "stage client has not failed" in the_violation(evidence, states)


def test_nothing_that_was_skipped(evidence: Evidence, states: dict[str, PrefectState]) -> None:
    none = replace(evidence, steps=[step(CLIENT, "SERVER_ERROR")])
    assert "no client was skipped" in the_violation(none, states)


def test_another_type_that_was_skipped(evidence: Evidence, states: dict[str, PrefectState]) -> None:
    more = replace(evidence, steps=[*evidence.steps, step(OF_CLIENT, HUB_UNAVAILABLE)])
    assert "domain were skipped" in the_violation(more, states)


@pytest.mark.parametrize("outcome", ["NOT_FOUND", None])
def test_an_item_that_waits_though_its_parents_are_in(
    evidence: Evidence, states: dict[str, PrefectState], outcome: str | None
) -> None:
    del evidence.ledger.items[OF_TENANT]
    requests = [request(OF_TENANT, 404, outcome)] if outcome else []
    waiting = replace(evidence, ledger=replace(evidence.ledger, requests=requests))
    assert "1 items are not in, though only client was down" in the_violation(waiting, states)


def test_an_item_that_a_planned_fault_kept_out(
    evidence: Evidence, states: dict[str, PrefectState]
) -> None:
    del evidence.ledger.items[OF_TENANT]
    requests = [request(OF_TENANT, 200, "garbage")]
    kept_out = replace(evidence, ledger=replace(evidence.ledger, requests=requests))
    assert list(goes_on_without("client", kept_out, states)) == []
