"""Reads the record of a flow run from the Prefect server."""

from dataclasses import dataclass
from typing import Any

import httpx
from prefect.client.base import PrefectHttpxSyncClient


@dataclass(frozen=True)
class PrefectRecord:
    """A run of `admin-sync`; `seconds` are from its start to its terminal state.

    `client_retries` are requests to the Prefect API that its client repeated.
    """

    seconds: float
    stages: int
    task_runs_of_largest_stage: int
    client_retries: int


def record_of(api_url: str, flow_run_id: str, *, client_retries: int) -> PrefectRecord:
    """Read a flow run and count the task runs of its stages."""
    with PrefectHttpxSyncClient(base_url=api_url, timeout=30, enable_csrf_support=True) as api:
        flow_run = api.get(f"flow_runs/{flow_run_id}").raise_for_status().json()
        stages = _of_flow_runs(
            api, "flow_runs/filter", {"parent_flow_run_id": _any_of(flow_run_id)}
        )
        task_runs = [
            _of_flow_runs(api, "task_runs/count", {"id": _any_of(stage["id"])}) for stage in stages
        ]
    return PrefectRecord(flow_run["total_run_time"], len(stages), max(task_runs), client_retries)


def _of_flow_runs(api: httpx.Client, path: str, flow_runs: dict[str, Any]) -> Any:
    return api.post(path, json={"flow_runs": flow_runs}).raise_for_status().json()


def _any_of(identifier: str) -> dict[str, list[str]]:
    return {"any_": [identifier]}
