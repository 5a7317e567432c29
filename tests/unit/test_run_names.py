"""What a run is called, and who is said to have asked for it."""

import uuid

import pytest
from prefect.client.schemas.objects import FlowRun

from flows.dashboard import name_of_run
from flows.state_mirror import trigger_of
from tasks.entities import ENTITY_NAMES


@pytest.mark.parametrize(
    ("entities", "name"),
    [
        (ENTITY_NAMES, "all entities - manual"),
        (ENTITY_NAMES[::-1], "all entities - manual"),
        (["domain"], "domain - manual"),
        (["tenant", "client"], "tenant, client - manual"),
    ],
)
def test_a_run_is_named_after_what_it_syncs(entities: list[str], name: str) -> None:
    assert name_of_run(entities, "manual") == name


def test_a_long_trigger_is_cut_in_the_name() -> None:
    assert len(name_of_run(ENTITY_NAMES, "x" * 200)) < 80


@pytest.mark.parametrize(
    ("parameters", "is_scheduled", "trigger"),
    [
        ({}, False, "manual"),
        ({}, True, "schedule"),
        ({"trigger": "manual"}, True, "schedule"),
        ({"trigger": "after the import"}, False, "after the import"),
        ({"trigger": "after the import"}, True, "after the import"),
    ],
)
def test_who_asked(parameters: dict[str, str], is_scheduled: bool, trigger: str) -> None:
    flow_run = FlowRun(flow_id=uuid.uuid4(), parameters=parameters, auto_scheduled=is_scheduled)
    assert trigger_of(flow_run) == trigger
