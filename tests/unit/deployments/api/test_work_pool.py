"""Whether a run would begin: its pool, its queue and the heartbeats of the workers decide."""

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest
from prefect.client.schemas.objects import Worker, WorkPool, WorkQueue

from deployments.api.work_pool import obstacle

NOW = datetime(2024, 1, 1, 12, tzinfo=UTC)
PAUSED_POOL = (
    "The work pool backoffice is paused: "
    "resume it on its page, or with `prefect work-pool resume backoffice`"
)
PAUSED_QUEUE = (
    "The work queue default of the work pool backoffice is paused: resume it on its page, "
    "or with `prefect work-queue resume default --pool backoffice`"
)
NO_WORKER = (
    "No worker of the work pool backoffice is up: "
    "start one with `prefect worker start --pool backoffice`"
)


def worker(silent_seconds: float | None, interval: int | None) -> Worker:
    heard: Any = None if silent_seconds is None else NOW - timedelta(seconds=silent_seconds)
    return Worker(
        name="a worker",
        work_pool_id=uuid4(),
        last_heartbeat_time=heard,
        heartbeat_interval_seconds=interval,
    )


@pytest.mark.parametrize(
    ("paused_pool", "paused_queue", "heartbeats", "told"),
    [
        (False, False, [(0, 6)], None),
        (False, False, [(18, 6)], None),
        (False, False, [(19, 6)], NO_WORKER),
        (False, False, [(-1, 6)], None),  # the time of Prefect's API has no fractions
        (False, False, [(90, 30)], None),
        (False, False, [(91, 30)], NO_WORKER),
        (False, False, [(90, None)], None),
        (False, False, [(91, None)], NO_WORKER),
        (False, False, [(None, 6)], NO_WORKER),
        (False, False, [], NO_WORKER),
        (False, False, [(1000, 6), (1000, 30), (3, 6)], None),
        (False, True, [(0, 6)], PAUSED_QUEUE),
        (False, True, [], PAUSED_QUEUE),
        (True, False, [(0, 6)], PAUSED_POOL),
        (True, True, [], PAUSED_POOL),
    ],
)
def test_a_run_begins_where_nothing_is_paused_and_a_worker_is_up(
    paused_pool: bool,
    paused_queue: bool,
    heartbeats: list[tuple[float | None, int | None]],
    told: str | None,
) -> None:
    pool = WorkPool(
        name="backoffice", type="process", is_paused=paused_pool, default_queue_id=uuid4()
    )
    queue = WorkQueue(name="default", work_pool_id=pool.id, is_paused=paused_queue)
    assert obstacle(pool, queue, [worker(*each) for each in heartbeats], NOW) == told
