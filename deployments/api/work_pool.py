"""Decides whether a run that Prefect has would begin: its work pool may be paused or unattended."""

from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import Final

from prefect.client.schemas.objects import Worker, WorkPool, WorkQueue

_MISSED_HEARTBEATS: Final = 3
"""A worker that misses so many is gone; the Prefect server counts the same."""
_HEARTBEAT_SECONDS: Final = 30
"""Interval of a worker that does not tell its own: Prefect's default."""


def obstacle(
    pool: WorkPool, queue: WorkQueue, workers: Iterable[Worker], now: datetime
) -> str | None:
    """Return why no run of a work pool's queue would begin, and what to do; None where one would.

    Args:
        now: the time by the clock of Prefect's API.
    """
    if pool.is_paused:
        return (
            f"The work pool {pool.name} is paused: "
            f"resume it on its page, or with `prefect work-pool resume {pool.name}`"
        )
    if queue.is_paused:
        return (
            f"The work queue {queue.name} of the work pool {pool.name} is paused: resume it on "
            f"its page, or with `prefect work-queue resume {queue.name} --pool {pool.name}`"
        )
    if not any(_is_up(worker, now) for worker in workers):
        return (
            f"No worker of the work pool {pool.name} is up: "
            f"start one with `prefect worker start --pool {pool.name}`"
        )
    return None


def _is_up(worker: Worker, now: datetime) -> bool:
    if worker.last_heartbeat_time is None:
        return False
    interval = worker.heartbeat_interval_seconds or _HEARTBEAT_SECONDS
    return now - worker.last_heartbeat_time <= timedelta(seconds=_MISSED_HEARTBEATS * interval)
