"""An operator of the syncs: starts one, retries one, reads its state."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from prefect.client.base import PrefectHttpxSyncClient

from tests.benchmarks.chaos.parts import Parts, run_in_repository

_ANSWER_SECONDS: Final = 30.0
_FINAL: Final = frozenset({"COMPLETED", "FAILED", "CRASHED", "CANCELLED"})


@dataclass(frozen=True)
class PrefectState:
    """The state of a flow run in Prefect."""

    type: str
    name: str
    message: str

    @property
    def is_final(self) -> bool:
        return self.type in _FINAL

    def __str__(self) -> str:
        return f"{self.name} ({self.message})" if self.message else self.name


class Operator:
    """A person with a shell and Prefect's API."""

    def __init__(self, parts: Parts) -> None:
        self._environment = parts.environment
        self._api = PrefectHttpxSyncClient(
            base_url=parts.prefect.part.address, timeout=_ANSWER_SECONDS, enable_csrf_support=True
        )

    def close(self) -> None:
        self._api.close()

    def start(self, deployment: str, settings: Mapping[str, str]) -> str:
        """Start a run of `admin-sync/<deployment>`; returns the id of its flow run.

        `settings` are more variables for its process.
        """
        found = self._get(f"/deployments/name/admin-sync/{deployment}")
        more = {"job_variables": {"env": dict(settings)}}
        flow_run = self._post(f"/deployments/{found['id']}/create_flow_run", more)
        return str(flow_run["id"])

    def retry(self, flow_run_id: str) -> None:
        """Retry a run that has ended."""
        run_in_repository(self._environment, "prefect", "flow-run", "retry", flow_run_id)

    def state(self, flow_run_id: str) -> PrefectState:
        return _state_of(self._get(f"/flow_runs/{flow_run_id}"))

    def stages(self, flow_run_id: str) -> dict[str, PrefectState]:
        """Return the states of a run's stages by entity type."""
        of_run = {"flow_runs": {"parent_flow_run_id": {"any_": [flow_run_id]}}}
        found = self._post("/flow_runs/filter", of_run)
        return {flow_run["name"]: _state_of(flow_run) for flow_run in found}

    def give_up(self, flow_run_id: str) -> None:
        """Set a run whose process is gone to Crashed."""
        crashed = {"type": "CRASHED", "message": "given up at the end of a round"}
        self._post(f"/flow_runs/{flow_run_id}/set_state", {"state": crashed, "force": True})

    def due_runs(self) -> list[str]:
        """Return the ids of all flow runs that have begun or are due, stages included."""
        begun = {"any_": ["PENDING", "RUNNING", "CANCELLING", "SCHEDULED", "PAUSED"]}
        found = self._post("/flow_runs/filter", {"flow_runs": {"state": {"type": begun}}})
        return [flow_run["id"] for flow_run in found]

    def _get(self, path: str) -> Any:
        return self._api.get(path).raise_for_status().json()

    def _post(self, path: str, body: dict[str, Any]) -> Any:
        return self._api.post(path, json=body).raise_for_status().json()


def _state_of(flow_run: Mapping[str, Any]) -> PrefectState:
    state = flow_run["state"]
    return PrefectState(state["type"], state["name"], state["message"] or "")
