"""A Stage 1 that throttles: requests go as fast as it takes them, and everything gets in."""

from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from functools import partial
from typing import Any
from uuid import UUID

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import (
    ArtifactFilter,
    ArtifactFilterFlowRunId,
    LogFilter,
    LogFilterFlowRunId,
)
from prefect.settings import PREFECT_LOGGING_TO_API_ENABLED, temporary_settings

from tasks.settings import read_mongo_settings
from tasks.trail.figures import figures
from tests.integration.world import SyncRun, World, stage_runs, wait_until

THROTTLED = {
    "503": {"status": 503},
    "429": {"status": 429},
    "429-with-retry-after": {"status": 429, "retry_after": "1"},
}
"""As nginx's limit_req, API Gateway and Lambda, and others refuse."""


@pytest.mark.parametrize(
    ("refusal", "concurrency"), zip(THROTTLED.values(), (3, 16, 16), strict=True), ids=THROTTLED
)
def test_everything_gets_in_with_the_retries_that_are_configured(
    world: World, refusal: dict[str, Any], concurrency: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ADMIN_CONCURRENCY", str(concurrency))
    monkeypatch.delenv("ADMIN_RETRY_BASE_DELAY_MS", raising=False)
    keys = world.add_tenants(60)
    world.hub.misbehave({"requests_per_second": 20, **refusal})
    run = world.sync(entities=["tenant"])
    assert run.document["status"] == "success"
    assert sorted(world.held("tenant")) == keys
    requests = world.hub.requests()
    assert sum(step["attempts"] for step in run.steps) == len(requests)
    refused = [request for request in requests if request["status"] != 200]
    assert 0 < len(refused) < len(keys)


def test_it_is_said_wherever_an_operator_looks(world: World) -> None:
    world.add_tenants(40)
    world.hub.misbehave({"requests_per_second": 5, "status": 429, "body": {"message": "Slow"}})

    def watch() -> tuple[float, str]:
        paces = wait_until(figures(read_mongo_settings()).paces)
        return paces["tenant"], wait_until(partial(progress_with, world, "requests/s"))

    logged = temporary_settings({PREFECT_LOGGING_TO_API_ENABLED: True})
    with logged, ThreadPoolExecutor(1) as elsewhere:
        watching = elsewhere.submit(copy_context().run, watch)
        run = world.sync(entities=["tenant"])
        pace, progress = watching.result()

    assert 0 < pace < 50
    assert ", paced at " in progress
    assert run.document["status"] == "success"
    assert run.document["stages"][0]["pace"] is None
    throttles = (
        "ADMIN_TENANTS_UPSERT_URL throttles (HTTP_429: HTTP 429: Slow): "
        "requests go as fast as it takes them"
    )
    # What a run logs gets to Prefect a bit later.
    assert wait_until(partial(log_lines_with, run, "throttles")) == [throttles]


def progress_with(world: World, text: str) -> str | None:
    """Return what a progress artifact of the run says, once it says that text."""
    (run,) = world.database.sync_runs.find()
    with get_client(sync_client=True) as prefect:
        of_run = ArtifactFilterFlowRunId(any_=[UUID(run["flow_run_id"])])
        found = prefect.read_artifacts(artifact_filter=ArtifactFilter(flow_run_id=of_run))
    said = [artifact.description or "" for artifact in found if artifact.type == "progress"]
    return next((each for each in said if text in each), None)


def log_lines_with(run: SyncRun, text: str) -> list[str]:
    """Return the lines of a run's log, and of its stages, that hold a text."""
    flow_run_id = run.document["flow_run_id"]
    of_run = [UUID(flow_run_id), *(stage.id for stage in stage_runs(flow_run_id))]
    with get_client(sync_client=True) as prefect:
        lines = prefect.read_logs(LogFilter(flow_run_id=LogFilterFlowRunId(any_=of_run)))
    return [line.message for line in lines if text in line.message]
