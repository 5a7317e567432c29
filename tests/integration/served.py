"""The flow as a deployment: served by a process of its own, started and retried through Prefect."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID

import psutil
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.objects import FlowRun, State
from prefect.exceptions import ObjectNotFound

from tasks.limit import LIMIT_PREFIX
from tests.integration.world import PATIENCE_SECONDS, REPOSITORY, SyncRun, World, wait_until


@contextmanager
def process(
    world: World, *arguments: str, log_path: Path, **settings: str
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a module as a process with the world's settings; it is stopped when the block ends.

    One that doesn't end when it is told to is killed, and that is a failure.
    """
    with log_path.open("ab") as log:
        started = subprocess.Popen(
            [sys.executable, "-m", *arguments],
            cwd=REPOSITORY,
            env={**os.environ, **world.environment, **settings},
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        yield started
    finally:
        started.terminate()
        try:
            started.wait(PATIENCE_SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(started.pid, signal.SIGKILL)
            started.wait()
            raise


@dataclass(frozen=True)
class Served:
    """The deployment of a world, and the process that serves it."""

    world: World
    api: SyncPrefectClient
    server: psutil.Process

    def start(self, **parameters: Any) -> UUID:
        """Ask for a run."""
        deployment = self.api.read_deployment_by_name(f"admin-sync/{self.world.database_name}")
        return self.api.create_flow_run_from_deployment(deployment.id, parameters=parameters).id

    def kill(self) -> None:
        """Kill the processes of all flow runs that are under way."""
        for child in self.server.children(recursive=True):
            child.kill()

    def prefect(self, *arguments: str) -> None:
        """Use Prefect's command line."""
        subprocess.run(
            [sys.executable, "-m", "prefect", *arguments],
            env={**os.environ, **self.world.environment},
            check=True,
            capture_output=True,
        )

    def flow_run(self, flow_run_id: UUID) -> FlowRun:
        return self.api.read_flow_run(flow_run_id)

    def final_state(self, flow_run_id: UUID) -> State[Any]:
        """Wait for the end of a flow run."""

        def state() -> State[Any] | None:
            now = self.flow_run(flow_run_id).state
            return now if now and now.is_final() else None

        return wait_until(state, poll_seconds=0.3)

    def ended(self, flow_run_id: UUID) -> SyncRun:
        """Wait until a run has ended in Prefect and in the audit trail, and look at it."""
        state = self.final_state(flow_run_id)
        runs = self.world.database.sync_runs
        open_or_none = {"flow_run_id": str(flow_run_id), "finished_at": {"$ne": None}}
        wait_until(lambda: runs.find_one(open_or_none))
        return self.world.run_of(state, str(flow_run_id))


def forget_slots() -> None:
    """Free what killed processes hold of the limits, a minute before their leases end."""
    with get_client(sync_client=True) as api:
        for limit in api.read_global_concurrency_limits(limit=200):
            if limit.name.startswith(LIMIT_PREFIX):
                api.delete_global_concurrency_limit_by_name(limit.name)


@contextmanager
def served(world: World, log_path: Path, **settings: str) -> Iterator[Served]:
    """Serve the flow as a deployment that is named after the world's database."""
    serve = ("prefect", "flow", "serve", "flows/admin_sync.py:admin_sync")
    named = ("--name", world.database_name)
    soon = {"PREFECT_RUNNER_POLL_FREQUENCY": "1"}
    with (
        process(world, *serve, *named, log_path=log_path, **soon, **settings) as server,
        get_client(sync_client=True) as api,
    ):
        name = f"admin-sync/{world.database_name}"
        wait_until(lambda: _has_deployment(api, name), poll_seconds=0.3)
        yield Served(world, api, psutil.Process(server.pid))


def _has_deployment(api: SyncPrefectClient, name: str) -> bool:
    try:
        api.read_deployment_by_name(name)
    except ObjectNotFound:
        return False
    return True
