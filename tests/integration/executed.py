"""Flow runs that a test executes itself, in a process of its own as on any machine, or here."""

import asyncio
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from subprocess import Popen
from typing import Any
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.objects import FlowRun, State
from prefect.flow_engine import run_flow_async
from prefect.states import Scheduled

from flows.admin_sync import admin_sync
from tests.integration.served import process
from tests.integration.world import REPOSITORY, Document, SyncRun, World, wait_until


@dataclass(frozen=True)
class Executed:
    """A deployment that no worker watches."""

    world: World
    api: SyncPrefectClient
    deployment_id: UUID
    logs: Path

    def create(self, **parameters: Any) -> UUID:
        """Ask for a run."""
        return self.api.create_flow_run_from_deployment(
            self.deployment_id, parameters=parameters
        ).id

    def execute(
        self, flow_run_id: UUID, shifted_by: str | None = None, **settings: str
    ) -> AbstractContextManager[Popen[bytes]]:
        """Execute a run; its process ends with the block at the latest.

        `shifted_by` is how many seconds its clock is ahead.
        """
        execute: tuple[str, ...] = ("prefect.engine", str(flow_run_id))
        if shifted_by is not None:
            execute = ("tests.integration.shifted_clock", shifted_by, str(flow_run_id))
        return process(self.world, *execute, log_path=self.logs / f"{flow_run_id}.log", **settings)

    def execute_here(self, flow_run_id: UUID) -> None:
        """Execute a run in this process."""
        flow_run = self.flow_run(flow_run_id)
        run = run_flow_async(
            admin_sync, flow_run=flow_run, parameters=flow_run.parameters, return_type="state"
        )
        asyncio.run(run)

    def retry(self, flow_run_id: UUID) -> None:
        """Let a run that has ended be due again, as `prefect flow-run retry` does."""
        self.api.set_flow_run_state(flow_run_id, Scheduled(name="AwaitingRetry"))

    def flow_run(self, flow_run_id: UUID) -> FlowRun:
        return self.api.read_flow_run(flow_run_id)

    def on_record(self, flow_run_id: UUID) -> Document:
        """Return the run's document; {} for none."""
        return self.world.database.sync_runs.find_one({"flow_run_id": str(flow_run_id)}) or {}

    def ended(self, flow_run_id: UUID) -> SyncRun:
        """Wait until a run has ended in Prefect and in the audit trail, and look at it."""

        def state() -> State[Any] | None:
            state = self.flow_run(flow_run_id).state
            is_ended = state and state.is_final() and self.on_record(flow_run_id)["finished_at"]
            return state if is_ended else None

        return self.world.run_of(wait_until(state), str(flow_run_id))

    def log(self, flow_run_id: UUID) -> str:
        """Return what the processes of a run have printed."""
        return (self.logs / f"{flow_run_id}.log").read_text()


@contextmanager
def executed(world: World, logs: Path) -> Iterator[Executed]:
    """Make a deployment of the flow that is named after the world's database."""
    with get_client(sync_client=True) as api:
        deployment_id = api.create_deployment(
            api.create_flow(admin_sync),
            world.database_name,
            entrypoint="flows/admin_sync.py:admin_sync",
            pull_steps=[
                {"prefect.deployments.steps.set_working_directory": {"directory": str(REPOSITORY)}}
            ],
        )
        yield Executed(world, api, deployment_id, logs)
