"""What goes on beside a run: it shows that it lives, and heeds its cancellation."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Final

import httpx
from prefect import get_run_logger
from prefect.client.orchestration import get_client

from flows.audit_sweep import end_dead_runs
from flows.state_mirror import current_flow_run
from tasks.mongo import MongoUnavailable
from tasks.run import Sender

ALIVE_SECONDS: Final = 10.0
"""How often a run shows that its process lives."""
LOOK_SECONDS: Final = 1.0
"""How often a run looks whether Prefect says that it is cancelled."""


@asynccontextmanager
async def attended(sender: Sender) -> AsyncIterator[None]:
    """Attend to the run that goes on in the block; and first to those whose process is gone."""
    sweep = asyncio.create_task(asyncio.to_thread(end_dead_runs))
    watches = [
        asyncio.create_task(_show_alive(sender)),
        asyncio.create_task(_heed_cancellation(sender)),
    ]
    try:
        yield
    finally:
        for watch in watches:
            watch.cancel()
        for outcome in await asyncio.gather(sweep, *watches, return_exceptions=True):
            if isinstance(outcome, Exception):
                get_run_logger().warning("The run was not attended: %s", type(outcome).__name__)


async def _show_alive(sender: Sender) -> None:
    while True:
        with suppress(MongoUnavailable):
            await asyncio.to_thread(sender.audit.show_alive, sender.attempt)
        await asyncio.sleep(ALIVE_SECONDS)


async def _heed_cancellation(sender: Sender) -> None:
    flow_run_id = current_flow_run().id
    async with get_client() as prefect:
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            with suppress(httpx.HTTPError):
                state = (await prefect.read_flow_run(flow_run_id)).state
                if state and (state.is_cancelling() or state.is_cancelled()):
                    await asyncio.to_thread(sender.cancel)
                    return
