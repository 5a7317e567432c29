"""Events that an operator brings about in Prefect, or that let a run's processes sleep."""

import time
from collections.abc import Callable
from typing import Final

from tests.benchmarks.chaos.ledger import Silence
from tests.benchmarks.chaos.operator import Operator
from tests.benchmarks.chaos.parts import Parts
from tests.benchmarks.chaos.waiting import within
from tests.benchmarks.workload import Document

STOP_SECONDS: Final = 2.0
"""How long a run may go on sending after it was suspended or deleted."""
LIMIT_DELETED: Final = "limit deleted"
"""The slots of the sleepers are taken from them; else the new attempt waits for their lease."""
_HOUR_MS: Final = 3_600_000
_PATIENCE_SECONDS: Final = 120.0


class EventFailed(RuntimeError):
    """What has to follow an event did not."""


def suspend(operator: Operator, flow_run_id: str, seconds: float) -> list[Silence]:
    """Suspend a run for a while; one that has ended in between is let be."""
    if not operator.suspend(flow_run_id):
        return []
    suspended_at = time.time()
    time.sleep(seconds)
    resumed_at = time.time()
    operator.resume(flow_run_id)
    return [Silence(operator.sender(flow_run_id), suspended_at + STOP_SECONDS, resumed_at)]


def put_to_sleep(
    parts: Parts, operator: Operator, flow_run_id: str, variant: str, seconds: float
) -> list[Silence]:
    """Stop the processes of a run until a sweep has ended it, and a retry has begun.

    They sleep on for `seconds` then, and have to leave once they are awake.

    Raises:
        EventFailed: there was no end, or no new attempt.
    """
    sleepers, sender = parts.processes_of(flow_run_id), operator.sender(flow_run_id)
    for process in sleepers:
        process.suspend()
    try:
        _age(parts)
        operator.sweep()
        _await(
            "no sweep has ended the run of the sleepers",
            lambda: _on_record(parts, flow_run_id)["finished_at"] is not None,
        )
        before = _on_record(parts, flow_run_id)["attempt"]
        if variant == LIMIT_DELETED:
            operator.delete_limits()
        operator.retry_as_another_sender(flow_run_id)
        _await(
            "no new attempt has begun", lambda: _on_record(parts, flow_run_id)["attempt"] > before
        )
        time.sleep(seconds)
    finally:
        woken_at = time.time()
        for process in sleepers:
            process.resume()
    return [Silence(sender, woken_at)]


def delete_flow_run(operator: Operator, flow_run_id: str) -> list[Silence]:
    """Delete a flow run in Prefect."""
    operator.delete(flow_run_id)
    return [Silence(operator.sender(flow_run_id), time.time() + STOP_SECONDS)]


def delete_deployments(operator: Operator, names: str) -> list[Silence]:
    """Delete the deployments of these names, with blanks in between, and make them again."""
    for name in names.split():
        operator.delete_deployment(name)
    operator.deploy()
    return []


def _age(parts: Parts) -> None:
    """Let the last that was heard of any run's process be an hour ago."""
    earlier = {"$set": {"alive_at": {"$subtract": ["$$NOW", _HOUR_MS]}}}
    parts.database.sync_runs.update_many({"alive_at": {"$exists": True}}, [earlier])


def _on_record(parts: Parts, flow_run_id: str) -> Document:
    run = parts.database.sync_runs.find_one({"flow_run_id": flow_run_id})
    if run is None:
        raise EventFailed(f"flow run {flow_run_id} has no document")
    return run


def _await(problem: str, condition: Callable[[], bool]) -> None:
    if not within(_PATIENCE_SECONDS, condition):
        raise EventFailed(problem)
