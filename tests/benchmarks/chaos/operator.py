"""An operator of the syncs: starts, suspends, retries and deletes them, and reads their states."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from http import HTTPStatus
from typing import Any, Final

import httpx
from prefect.client.base import PrefectHttpxSyncClient

from tasks.limit import LIMIT_PREFIX
from tests.benchmarks.chaos.hub import token_of
from tests.benchmarks.chaos.ledger import Sender
from tests.benchmarks.chaos.parts import Parts, run_in_repository
from tests.benchmarks.chaos.waiting import within

_ANSWER_SECONDS: Final = 30.0
_SWEEP_SECONDS: Final = 120.0
_LATER: Final = timedelta(hours=1)
_DELETED: Final = "DELETED"
_FINAL: Final = frozenset({"COMPLETED", "FAILED", "CRASHED", "CANCELLED", _DELETED})


@dataclass(frozen=True)
class PrefectState:
    """The state of a flow run in Prefect; one that was deleted there has a type of its own."""

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
        self._suffix = parts.suffix
        self._senders: dict[str, Sender] = {}
        self._sweeps: list[str] = []
        self._settings: dict[str, Mapping[str, str]] = {}
        self._api = PrefectHttpxSyncClient(
            base_url=parts.prefect.part.address, timeout=_ANSWER_SECONDS, enable_csrf_support=True
        )

    def close(self) -> None:
        self._api.close()

    @property
    def flow_runs(self) -> list[str]:
        """The ids of the flow runs that were started, in that order."""
        return list(self._senders)

    def sender(self, flow_run_id: str) -> Sender:
        """Return by what name the hub knows the process of a run that begins now."""
        return self._senders[flow_run_id]

    def start(self, deployment: str, settings: Mapping[str, str]) -> str:
        """Start a run of `admin-sync/<deployment>`; returns the id of its flow run.

        `settings` are more variables for its process.
        """
        sender = Sender(len(self._senders) + 1)
        more = _job_variables(settings, sender)
        flow_run_id = self._create("admin-sync", deployment, more)
        self._senders[flow_run_id], self._settings[flow_run_id] = sender, settings
        return flow_run_id

    def retry(self, flow_run_id: str) -> None:
        """Retry a run that has ended."""
        run_in_repository(self._environment, "prefect", "flow-run", "retry", flow_run_id)

    def retry_as_another_sender(self, flow_run_id: str) -> None:
        """Retry a run that has ended, under another token.

        Prefect takes another one of a run that is scheduled and no worker has taken yet.
        """
        before = self._senders[flow_run_id]
        sender = self._senders[flow_run_id] = Sender(before.run, before.part + 1)
        self._schedule(flow_run_id, datetime.now(UTC) + _LATER)
        more = _job_variables(self._settings[flow_run_id], sender)
        self._api.patch(f"/flow_runs/{flow_run_id}", json=more).raise_for_status()
        self._schedule(flow_run_id, datetime.now(UTC))

    def suspend(self, flow_run_id: str) -> bool:
        """Suspend a run; returns whether it was still running."""
        details = {
            "pause_reschedule": True,
            "pause_timeout": (datetime.now(UTC) + _LATER).isoformat(),
        }
        suspended = {"type": "PAUSED", "name": "Suspended", "state_details": details}
        return self._set_state(flow_run_id, suspended)

    def resume(self, flow_run_id: str) -> None:
        """Resume a run that is suspended; one that has ended is let be."""
        self._post(f"/flow_runs/{flow_run_id}/resume", {})

    def delete(self, flow_run_id: str) -> None:
        """Delete a flow run."""
        self._api.delete(f"/flow_runs/{flow_run_id}").raise_for_status()

    def delete_deployment(self, name: str) -> None:
        """Delete `admin-sync/<name>`."""
        found = self._deployment("admin-sync", name)
        self._api.delete(f"/deployments/{found['id']}").raise_for_status()

    def deploy(self) -> None:
        """Make the deployments again."""
        run_in_repository(self._environment, "deployments.deploy")

    def delete_limits(self) -> None:
        """Delete the limits of all Stage 1s, and so the slots that processes hold of them."""
        for limit in self._post("/v2/concurrency_limits/filter", {}):
            if limit["name"].startswith(LIMIT_PREFIX):
                self._api.delete(f"/v2/concurrency_limits/{limit['id']}").raise_for_status()

    def sweep(self) -> None:
        """Start the sweep."""
        self._sweeps.append(self._create("audit-sweep", "audit-sweep", {}))

    def has_swept(self) -> bool:
        """Whether all sweeps that were started succeed."""
        return all(map(self._succeeds, self._sweeps))

    def state(self, flow_run_id: str) -> PrefectState:
        try:
            return _state_of(self._get(f"/flow_runs/{flow_run_id}"))
        except httpx.HTTPStatusError as error:
            if error.response.status_code != HTTPStatus.NOT_FOUND:
                raise
            return PrefectState(_DELETED, "Deleted", "")

    def stages(self, flow_run_id: str) -> dict[str, PrefectState]:
        """Return the states of a run's stages by entity type."""
        found = self._flow_runs({"parent_flow_run_id": {"any_": [flow_run_id]}})
        return {flow_run["name"]: _state_of(flow_run) for flow_run in found}

    def give_up(self, flow_run_id: str) -> None:
        """Set a run whose process is gone to Crashed."""
        crashed = {"type": "CRASHED", "message": "given up at the end of a round"}
        self._set_state(flow_run_id, crashed, force=True)

    def unfinished_runs(self) -> list[str]:
        """Return the ids of all flow runs of ours that have not ended, stages included."""
        open_types = ["PENDING", "RUNNING", "CANCELLING", "SCHEDULED", "PAUSED"]
        is_open = {"state": {"type": {"any_": open_types}}}
        ours = {"any_": self.flow_runs}
        runs = self._flow_runs({"id": ours, **is_open})
        stages = self._flow_runs({"parent_flow_run_id": ours, **is_open})
        return [flow_run["id"] for flow_run in (*runs, *stages)]

    def _flow_runs(self, matching: dict[str, Any]) -> Any:
        return self._post("/flow_runs/filter", {"flow_runs": matching})

    def _deployment(self, flow: str, name: str) -> Any:
        return self._get(f"/deployments/name/{flow}/{name}{self._suffix}")

    def _create(self, flow: str, deployment: str, more: dict[str, Any]) -> str:
        found = self._deployment(flow, deployment)
        return str(self._post(f"/deployments/{found['id']}/create_flow_run", more)["id"])

    def _schedule(self, flow_run_id: str, at: datetime) -> None:
        due = {"type": "SCHEDULED", "state_details": {"scheduled_time": at.isoformat()}}
        self._set_state(flow_run_id, due, force=True)

    def _set_state(self, flow_run_id: str, state: dict[str, Any], *, force: bool = False) -> bool:
        wanted = {"state": state, "force": force}
        return bool(self._post(f"/flow_runs/{flow_run_id}/set_state", wanted)["status"] == "ACCEPT")

    def _succeeds(self, flow_run_id: str) -> bool:
        within(_SWEEP_SECONDS, lambda: self.state(flow_run_id).is_final)
        return self.state(flow_run_id).type == "COMPLETED"

    def _get(self, path: str) -> Any:
        return self._api.get(path).raise_for_status().json()

    def _post(self, path: str, body: dict[str, Any]) -> Any:
        return self._api.post(path, json=body).raise_for_status().json()


def _job_variables(settings: Mapping[str, str], sender: Sender) -> dict[str, Any]:
    return {"job_variables": {"env": {**settings, "ADMIN_SYNC_TOKEN": token_of(sender)}}}


def _state_of(flow_run: Mapping[str, Any]) -> PrefectState:
    state = flow_run["state"]
    return PrefectState(state["type"], state["name"], state["message"] or "")
