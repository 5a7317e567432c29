"""Checks that a measured run did its work: the time of a failure says nothing."""

from collections.abc import Callable, Mapping
from typing import Any

from tests.benchmarks.testbed import Testbed
from tests.benchmarks.workload import Document

Output = dict[str, Any]
"""The JSON that a contender's process has printed."""


class BenchmarkFailed(RuntimeError):
    """A measured run did not do its work."""


def all_items_are_in(testbed: Testbed, _: Output) -> None:
    """Stage 1 got each item once, and at no time more requests than the concurrency."""
    stats = testbed.hub.stats()
    _require("distinct keys at the hub", stats.distinct_keys, dict(testbed.workload.sizes))
    _require("requests at the hub", stats.requests, testbed.workload.items)
    if stats.max_in_flight > testbed.workload.concurrency:
        raise BenchmarkFailed(f"{stats.max_in_flight} requests were in flight")


def every_item_has_a_step(collection: str) -> Callable[[Testbed, Output], None]:
    """Stage 1 got each item, and the collection has a document for each."""

    def check(testbed: Testbed, output: Output) -> None:
        all_items_are_in(testbed, output)
        _require("steps", testbed.database[collection].count_documents({}), testbed.workload.items)

    return check


def our_run_is_complete(testbed: Testbed, output: Output) -> None:
    """Stage 1, the flow run's state and the audit trail agree that everything is in."""
    items = testbed.workload.items
    all_items_are_in(testbed, output)
    run = _succeeded_run(testbed, output, {"total": items, "success": items})
    steps = testbed.database.sync_steps.count_documents({"run_id": run["_id"], "ok": True})
    _require("steps", steps, items)


def nothing_was_sent(testbed: Testbed, output: Output) -> None:
    """Stage 1 got nothing since the run before, and the trail counts each item as unchanged."""
    items = testbed.workload.items
    all_items_are_in(testbed, output)
    run = _succeeded_run(testbed, output, {"total": items, "skipped": items})
    _require("unchanged", sum(stage["unchanged"] for stage in run["stages"]), items)


def _succeeded_run(testbed: Testbed, output: Output, totals: Mapping[str, int]) -> Document:
    """Return the run's own record, which has these totals and no others."""
    _require(f"state ({output['message']})", output["state"], "COMPLETED")
    run = testbed.database.sync_runs.find_one({"flow_run_id": output["flow_run_id"]})
    if run is None:
        raise BenchmarkFailed("the audit trail has no such run")
    _require("status", run["status"], "success")
    _require("totals", {name: count for name, count in run["totals"].items() if count}, totals)
    return run


def _require(name: str, found: object, expected: object) -> None:
    if found != expected:
        raise BenchmarkFailed(f"{name}: {found}, expected {expected}")
