"""What a run is called, and who is said to have asked for it."""

import uuid
from collections.abc import Sequence
from typing import Any

import pytest
from prefect.client.schemas.objects import FlowRun

from flows.dashboard import name_of_run
from flows.state_mirror import trigger_of
from tasks.entities import ENTITY_NAMES
from tasks.trail.runs import RunOptions, SyncMode


def options(entities: Sequence[str] = ENTITY_NAMES, **asked: Any) -> RunOptions:
    return RunOptions(**{"trigger": "manual", "entities": tuple(entities), **asked})


@pytest.mark.parametrize(
    ("asked", "name"),
    [
        (options(), "all entities - manual"),
        (options(ENTITY_NAMES[::-1]), "all entities - manual"),
        (options(["domain"]), "domain - manual"),
        (options(["tenant", "client"]), "tenant, client - manual"),
        (options(mode=SyncMode.CHANGED), "changed: all entities - manual"),
        (options(["domain"], dry_run=True), "dry run: domain - manual"),
        (
            options(mode=SyncMode.CHANGED, dry_run=True, trigger="me"),
            "dry run: changed: all entities - me",
        ),
    ],
)
def test_a_run_is_named_after_what_it_does(asked: RunOptions, name: str) -> None:
    assert name_of_run(asked) == name


def test_a_long_trigger_is_cut_in_the_name() -> None:
    assert len(name_of_run(options(trigger="x" * 200))) < 80


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
