"""Heartbeat: shows that a run lives, and obeys its cancellation, beside the run itself."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Final

import httpx
from prefect import get_run_logger
from prefect.client.orchestration import get_client

from flows.audit_sweep import end_dead_runs
from flows.state_mirror import current_flow_run
from tasks.mongo_errors import MongoError
from tasks.run import Run

BEAT_SECONDS: Final = 10.0
"""How often a run shows that its process lives."""
LOOK_SECONDS: Final = 1.0
"""How often a run looks whether Prefect says that it is cancelled."""


@asynccontextmanager
async def heartbeat(run: Run) -> AsyncIterator[None]:
    """Keep the heartbeat of the run in the block; first, end runs whose process is gone."""
    sweep = asyncio.create_task(asyncio.to_thread(end_dead_runs, run.settings))
    watches = [asyncio.create_task(_beat(run)), asyncio.create_task(_obey_cancellation(run))]
    try:
        yield
    finally:
        for watch in watches:
            watch.cancel()
        for outcome in await asyncio.gather(sweep, *watches, return_exceptions=True):
            if isinstance(outcome, Exception):
                get_run_logger().warning("The run had no heartbeat: %s", type(outcome).__name__)


async def _beat(run: Run) -> None:
    while True:
        with suppress(MongoError):
            await asyncio.to_thread(run.trail.liveness.show, run.attempt)
        await asyncio.sleep(BEAT_SECONDS)


async def _obey_cancellation(run: Run) -> None:
    flow_run_id = current_flow_run().id
    async with get_client() as prefect:
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            with suppress(httpx.HTTPError):
                state = (await prefect.read_flow_run(flow_run_id)).state
                if state and (state.is_cancelling() or state.is_cancelled()):
                    await asyncio.to_thread(run.cancel)
                    return
