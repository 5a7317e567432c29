"""The name of a run in the dashboard."""

from collections.abc import Sequence
from typing import Any

import pytest

from flows.dashboard import name_of_run
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
