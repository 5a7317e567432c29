"""The plans that MongoDB chose for a read, as its profiler tells them."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from pymongo.database import Database

Document = dict[str, Any]


def plans_of(database: Database[Document], read: Callable[[], object]) -> list[str]:
    """Do a read, and return a line for each operation of MongoDB that it takes."""
    database.system.profile.drop()
    database.command("profile", 2)
    try:
        read()
    finally:
        database.command("profile", 0)
    operations = database.system.profile.find({"planSummary": {"$exists": True}}).sort("ts")
    return [_line_of(operation) for operation in operations]


def _line_of(operation: Document) -> str:
    collection = operation["ns"].partition(".")[2]
    # Of an aggregation the profiler tells the summary alone.
    tree = operation.get("execStats")
    stages = " < ".join(_stages(tree)) if tree else operation["planSummary"]
    keys, documents = operation["keysExamined"], operation["docsExamined"]
    return f"{collection}: {stages}; {keys:,} keys, {documents:,} documents"


def _stages(plan: Mapping[str, Any]) -> Iterator[str]:
    """Yield the stages of a plan, the outermost first; of several inputs, the first."""
    index = f" {plan['indexName']}" if "indexName" in plan else ""
    inputs = plan.get("inputStages") or [plan[name] for name in ("inputStage",) if name in plan]
    times = f" of {len(inputs)}" if len(inputs) > 1 else ""
    yield f"{plan['stage']}{index}{times}"
    if inputs:
        yield from _stages(inputs[0])
