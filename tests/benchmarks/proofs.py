"""What must be true after a measured run; else its time would be that of a failure."""

from collections.abc import Callable, Mapping
from typing import Any

from tests.benchmarks.arena import Arena
from tests.benchmarks.workload import Document

Answer = dict[str, Any]
"""What a contender's process has printed."""


class BenchmarkFailed(RuntimeError):
    """A measured run did not do its work."""


def all_items_are_in(arena: Arena, _: Answer) -> None:
    """Stage 1 got each item, once, and never more than was allowed at a time."""
    stats = arena.hub.stats()
    _require("distinct keys at the hub", stats.distinct_keys, dict(arena.workload.sizes))
    _require("requests at the hub", stats.requests, arena.workload.items)
    if stats.max_in_flight > arena.workload.concurrency:
        raise BenchmarkFailed(f"{stats.max_in_flight} requests were in flight")


def every_item_has_a_step(collection: str) -> Callable[[Arena, Answer], None]:
    """Stage 1 got each item, and the collection has a document of each."""

    def proof(arena: Arena, answer: Answer) -> None:
        all_items_are_in(arena, answer)
        _require("steps", arena.database[collection].count_documents({}), arena.workload.items)

    return proof


def our_run_is_complete(arena: Arena, answer: Answer) -> None:
    """Stage 1, the flow run's state and the audit trail agree that everything is in."""
    items = arena.workload.items
    all_items_are_in(arena, answer)
    run = _succeeded_run(arena, answer, {"total": items, "success": items})
    steps = arena.database.sync_steps.count_documents({"run_id": run["_id"], "ok": True})
    _require("steps", steps, items)


def nothing_was_sent(arena: Arena, answer: Answer) -> None:
    """Stage 1 has no more than from the run before, and the audit trail says of each item why."""
    items = arena.workload.items
    all_items_are_in(arena, answer)
    run = _succeeded_run(arena, answer, {"total": items, "skipped": items})
    _require("unchanged", sum(stage["unchanged"] for stage in run["stages"]), items)


def _succeeded_run(arena: Arena, answer: Answer, totals: Mapping[str, int]) -> Document:
    """Return the run's own record, which has these totals and no others."""
    _require(f"state ({answer['message']})", answer["state"], "COMPLETED")
    run = arena.database.sync_runs.find_one({"flow_run_id": answer["flow_run_id"]})
    if run is None:
        raise BenchmarkFailed("the audit trail has no such run")
    _require("status", run["status"], "success")
    _require("totals", {name: count for name, count in run["totals"].items() if count}, totals)
    return run


def _require(what: str, found: object, expected: object) -> None:
    if found != expected:
        raise BenchmarkFailed(f"{what}: {found}, expected {expected}")
