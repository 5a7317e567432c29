"""Syncs that can be asked for, and what a run is then to do."""

from typing import Any

import pytest
from pydantic import ValidationError

from deployments.api.models import SyncRequest
from tasks.entities import ENTITY_NAMES
from tasks.trail.runs import RunOptions, SyncMode

CHANGED = SyncMode.CHANGED


@pytest.mark.parametrize(
    ("asked", "options"),
    [
        ({}, RunOptions("REST API", tuple(ENTITY_NAMES))),
        (
            {"entities": ["branding", "tenant", "tenant"]},
            RunOptions("REST API", ("tenant", "branding")),
        ),
        (
            {"mode": "changed", "dry_run": True, "skip_orphans": True, "entities": ["client"]},
            RunOptions("REST API", ("client",), CHANGED, dry_run=True, skip_orphans=True),
        ),
        (
            {"disable_gone": True, "entities": ["client"]},
            RunOptions("REST API", ("client",), disable_gone=True),
        ),
        (
            {"entities": ["client"], "trigger": "after the import"},
            RunOptions("after the import", ("client",)),
        ),
    ],
)
def test_what_is_asked_for_is_what_the_run_does(asked: dict[str, Any], options: RunOptions) -> None:
    assert SyncRequest.model_validate(asked).options() == options


@pytest.mark.parametrize(
    "asked",
    [
        {"entities": []},
        {"entities": ["user"]},
        {"mode": "half"},
        {"entity": ["tenant"]},
        {"dry_run": 0},
        {"trigger": "x" * 201},
    ],
)
def test_what_can_not_be_asked_for(asked: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        SyncRequest.model_validate(asked)
