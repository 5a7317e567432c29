"""Histories of documents and syncs, as data: what Stage 1 holds then, and what the run says."""

import json
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest
from bson import json_util

from tasks.entities import entity_type_named
from tests.integration.world import Document, World

CASES = Path(__file__).parents[1] / "cases" / "histories.json"
KEY = "acme"
"""Stands in the data for a natural key that only this history has."""


def histories() -> list[Document]:
    return [
        json_util.loads(json.dumps(case).replace(f'"{KEY}"', json.dumps(f"{KEY}: {case['name']}")))
        for case in json.loads(CASES.read_text())
    ]


def modes_of(history: Document) -> list[str]:
    return [step["sync"] for step in history["steps"] if "sync" in step]


def what_is_shared(history: Document) -> tuple[str, str, str]:
    """Return what histories have in common that take place in the same syncs."""
    return history["entity_type"], ", ".join(modes_of(history)), history["status"]


GROUPS = {
    ": ".join(shared): list(group)
    for shared, group in groupby(sorted(histories(), key=what_is_shared), key=what_is_shared)
}


@pytest.mark.parametrize("group", GROUPS.values(), ids=GROUPS)
def test_histories(world: World, group: list[Document]) -> None:
    entity_type = entity_type_named(group[0]["entity_type"])
    source = world.database[entity_type.collection]
    ahead = [iter(history["steps"]) for history in group]
    for mode in modes_of(group[0]):
        for steps in ahead:
            for step in steps:
                ((action, value),) = step.items()
                match action:
                    case "insert":
                        source.insert_many(value)
                    case "update":
                        source.update_one(*value)
                    case "delete":
                        source.delete_one(value)
                    case "sync":
                        break
        run = world.sync(entities=[entity_type.name], mode=mode)

    held = [item for history in group for item in history["hub"].items()]
    assert world.held(entity_type.name) == dict(held)
    assert len(dict(held)) == len(held), "each history has natural keys of its own"
    is_success = run.document["status"] == "success"
    assert is_success == (group[0]["status"] == "success"), run.document["message"]
    codes: dict[str, Any] = {}
    for history in group:
        codes |= history.get("codes", {})
    assert {key: run.codes()[key] for key in codes} == codes
