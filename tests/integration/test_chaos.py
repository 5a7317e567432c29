"""The chaos benchmark's short form: parts die or stall in the midst of a sync; nothing is lost."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.benchmarks.chaos.events import Event, ScheduledEvent
from tests.benchmarks.chaos.parts import Parts, chaos_parts
from tests.benchmarks.chaos.rounds import FollowUp, RoundPlan, run_round
from tests.benchmarks.chaos.standing import EndpointDown

ITEMS = 200
RESUMED_ONCE = 27
"""Seed of a round in which no item of the last types fails for good at first."""


@pytest.fixture(scope="module")
def parts(prefect_home_in: Callable[[Path], Path]) -> Iterator[Parts]:
    # Half of the slots: a killed process does not give its own back for a minute.
    with chaos_parts(prefect_home_in, ADMIN_MAX_TASK_RUNS="4") as parts:
        yield parts


def test_servers_that_stall_and_die_and_the_flow_run_in_the_end(parts: Parts) -> None:
    schedule = (
        ScheduledEvent(Event.HUB_STALLED, at_request=20, seconds=1),
        ScheduledEvent(Event.PREFECT_STALLED, at_request=45, seconds=1),
        ScheduledEvent(Event.MONGOD_KILLED, at_request=70, seconds=1),
        ScheduledEvent(Event.MONGOD_STALLED, at_request=95, seconds=1),
        ScheduledEvent(Event.PREFECT_KILLED, at_request=120, seconds=0),
        ScheduledEvent(Event.HUB_DOWN, at_request=145, seconds=1),
        ScheduledEvent(Event.FLOW_RUN_KILLED, at_request=170, seconds=0),
    )
    result = run_round(parts, RoundPlan(RESUMED_ONCE, ITEMS, schedule, FollowUp.RESUME))
    assert result.violations == ()


def test_a_worker_that_is_killed_while_an_endpoint_is_down(parts: Parts) -> None:
    schedule = (ScheduledEvent(Event.WORKER_KILLED, at_request=100, seconds=0),)
    down = EndpointDown("client", drops=True)
    result = run_round(parts, RoundPlan(6, ITEMS, schedule, FollowUp.NEXT_RUN, down))
    assert result.violations == ()
