"""Carries the end of a run that had not begun to speak into the audit trail."""

import asyncio
from contextlib import suppress
from typing import Final

from prefect.client.schemas.objects import FlowRun

from deployments.api.sync_deployment import PrefectUnavailable, SyncDeployment
from flows.state_mirror import mirror_state
from tasks.mongo_errors import MongoError
from tasks.trail.audit_trail import AuditTrail

_LOOK_SECONDS: Final = 1.0


class FollowedRuns:
    """Runs that may end before they speak: Prefect runs no state hook of such a run.

    It may be cancelled here, in the dashboard or on the command line.
    """

    def __init__(self, deployment: SyncDeployment) -> None:
        self._deployment = deployment
        self._tasks: dict[str, asyncio.Task[None]] = {}

    def follow(self, trail: AuditTrail, flow_run_id: str) -> None:
        """Look at a flow run each second, until it has begun or ended."""
        if flow_run_id not in self._tasks:
            task = asyncio.create_task(self._follow(trail, flow_run_id))
            self._tasks[flow_run_id] = task
            task.add_done_callback(lambda _: self._tasks.pop(flow_run_id))

    async def stop(self) -> None:
        """Follow no run any more."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _follow(self, trail: AuditTrail, flow_run_id: str) -> None:
        is_open = True
        while is_open:
            await asyncio.sleep(_LOOK_SECONDS)
            with suppress(PrefectUnavailable, MongoError):
                is_open = await self._is_open(trail, flow_run_id)

    async def _is_open(self, trail: AuditTrail, flow_run_id: str) -> bool:
        flow_run = await self._deployment.flow_run(flow_run_id)
        if flow_run and flow_run.start_time is None and _is_cancelling(flow_run):
            # A worker ends such a run in some moments of its start only.
            flow_run = await self._deployment.end_cancelled(flow_run_id)
        if flow_run is None or flow_run.state is None:
            return False
        if flow_run.state.is_final():
            await asyncio.to_thread(mirror_state, trail, flow_run, flow_run.state)
            return False
        return not (flow_run.state.is_running() or flow_run.state.is_paused())


def _is_cancelling(flow_run: FlowRun) -> bool:
    return flow_run.state is not None and flow_run.state.is_cancelling()
