"""The plans of chaos rounds: repeatable, and with all that an event may be."""

import json
from dataclasses import asdict

import pytest

from tests.benchmarks.chaos.events import RANDOM_SECONDS, VARIANTS, Event
from tests.benchmarks.chaos.rounds import FollowUp, RoundPlan, RoundResult

ITEMS = 1_000
SEEDS = range(100)


def plans(event: Event) -> list[RoundPlan]:
    return [RoundPlan.drawn(seed, event, ITEMS) for seed in SEEDS]


@pytest.mark.parametrize("event", Event)
def test_the_same_seed_makes_the_same_plan(event: Event) -> None:
    assert plans(event) == plans(event)
    assert all(plan.kinds == {event} for plan in plans(event))


@pytest.mark.parametrize("event", Event)
def test_a_plan_tells_its_event_and_goes_into_json(event: Event) -> None:
    plan = RoundPlan.drawn(1, event, ITEMS)
    assert str(event) in str(plan)
    assert json.loads(json.dumps(asdict(plan)))["seed"] == 1


@pytest.mark.parametrize("event", RANDOM_SECONDS)
def test_an_event_of_random_length_lasts_as_long_as_it_may(event: Event) -> None:
    shortest, longest = RANDOM_SECONDS[event]
    lengths = [plan.schedule[0].seconds for plan in plans(event)]
    assert all(shortest <= seconds <= longest for seconds in lengths)
    assert max(lengths) - min(lengths) > 0.8 * (longest - shortest)


@pytest.mark.parametrize("event", VARIANTS)
def test_an_event_comes_in_all_its_ways(event: Event) -> None:
    assert {plan.schedule[0].variant for plan in plans(event)} == set(VARIANTS[event])


@pytest.mark.parametrize("event", [Event.FLOW_RUN_DELETED, Event.DEPLOYMENT_DELETED])
def test_what_prefect_knows_no_more_is_not_retried(event: Event) -> None:
    assert {plan.follow_up for plan in plans(event)} == {FollowUp.NEXT_RUN}


def test_of_two_environments_one_is_struck() -> None:
    struck = set()
    for plan in plans(Event.TWO_ENVIRONMENTS):
        assert plan.staging
        assert Event.TWO_ENVIRONMENTS in plan.events & plan.staging.events
        (event,) = (plan.events | plan.staging.events) - {Event.TWO_ENVIRONMENTS}
        struck.add((event, event in plan.staging.events))
    kinds = (Event.FLOW_RUN_KILLED, Event.SUSPENDED)
    assert struck == {(event, there) for event in kinds for there in (True, False)}


def test_the_result_of_two_environments_tells_of_both() -> None:
    plan = RoundPlan.drawn(1, Event.TWO_ENVIRONMENTS, ITEMS)
    here = RoundResult(plan, ("one",), 10, {"none": 9, "slow": 1}, 0, 2, 1.0, 30.0)
    there = RoundResult(plan, ("another",), 20, {"none": 20}, 5, 1, 2.0, 20.0)
    both = here.and_in_staging(there)
    assert both == RoundResult(
        plan, ("one", "staging: another"), 30, {"none": 29, "slow": 1}, 5, 2, 2.0, 30.0
    )
