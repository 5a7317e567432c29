"""The name and the tags of a run in Prefect."""

import uuid
from collections.abc import Sequence
from typing import Any
from unittest.mock import Mock

import pytest
from prefect.client.schemas.objects import FlowRun
from prefect.utilities.names import generate_slug

from flows.run_names import name_of_current_run, name_of_run, tags_of_run
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


def name_of_run_that_is_called(name: str, monkeypatch: pytest.MonkeyPatch) -> str:
    flow_run = FlowRun(id=uuid.uuid4(), flow_id=uuid.uuid4(), name=name)
    context = Mock(flow_run=flow_run, parameters={"entities": ["domain"]})
    monkeypatch.setattr("flows.state_mirror.FlowRunContext", Mock(get=lambda: context))
    return name_of_current_run()


@pytest.mark.parametrize(
    "given",
    [
        "Month-end sync",
        "before-migration",
        "beta",
        "alpha 2-fix",
        "Small-scale import",
        "brave-otter again",
        "first-otter",
        "all entities - the import",
        "ünïcode ✓",
    ],
)
def test_a_name_that_a_run_was_given_stays(given: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert name_of_run_that_is_called(given, monkeypatch) == given


def test_a_name_that_the_server_made_up_gives_way(monkeypatch: pytest.MonkeyPatch) -> None:
    for _ in range(200):
        assert name_of_run_that_is_called(generate_slug(2), monkeypatch) == "domain - manual"


@pytest.mark.parametrize(
    "generated",
    [
        "epsilon596-tzenketh-warp",
        "beta73-bopak-r",
        "gamma-canis-majoris",
        "pi--void",
        "tau4",
        "omicron596",
        "Ergonomic-Mole",
        "Sleek-Ox",
        "Tasty-Vicuña",
    ],
)
def test_a_name_that_a_form_filled_in_gives_way(
    generated: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert name_of_run_that_is_called(generated, monkeypatch) == "domain - manual"


@pytest.mark.parametrize(
    ("asked", "tags"),
    [
        (options(), ["mode:full", "database:backoffice"]),
        (options(mode=SyncMode.CHANGED), ["mode:changed", "database:backoffice"]),
        (options(dry_run=True), ["mode:full", "dry-run", "database:backoffice"]),
    ],
)
def test_a_run_is_tagged_with_what_it_does(asked: RunOptions, tags: list[str]) -> None:
    assert tags_of_run(asked, "backoffice") == tags
