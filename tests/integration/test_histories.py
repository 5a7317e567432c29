"""Histories of documents and syncs, as data: what Stage 1 holds then, and what the run says."""

from pathlib import Path
from typing import Any

import pytest
from bson import json_util

from tasks.entities import entity_type_named
from tests.integration.world import Document, World

HISTORIES: list[Document] = json_util.loads(
    (Path(__file__).parents[1] / "cases" / "histories.json").read_text()
)


@pytest.mark.parametrize("history", [pytest.param(each, id=each["name"]) for each in HISTORIES])
def test_history(world: World, history: Document) -> None:
    entity_type = entity_type_named(history["entity_type"])
    source = world.database[entity_type.collection]
    for step in history["steps"]:
        ((action, value),) = step.items()
        match action:
            case "insert":
                source.insert_many(value)
            case "update":
                source.update_one(*value)
            case "delete":
                source.delete_one(value)
            case "sync":
                run = world.sync(entities=[entity_type.name], mode=value)

    assert world.held(entity_type.name) == history["hub"]
    is_success = run.document["status"] == "success"
    assert is_success == (history["status"] == "success"), run.document["message"]
    codes: dict[str, Any] = history.get("codes", {})
    assert {key: run.codes()[key] for key in codes} == codes
