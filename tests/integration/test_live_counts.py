"""While a sync goes on, its record, REST's view of it and the dashboard tell how far it is."""

from typing import Any
from uuid import UUID

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId
from prefect.client.schemas.objects import Artifact

from tests.integration.world import World, wait_until

Document = dict[str, Any]
COUNTS = ("total", "success", "failed", "skipped", "retrying")


def test_what_awaits_its_retry_is_told_and_nothing_says_that_all_is_done(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ADMIN_RETRY_MAX", "20")
    monkeypatch.setenv("ADMIN_RETRY_BASE_DELAY_MS", "200")
    world.add_tenants(9)
    world.add("tenant", {"id": "invalid", "version": 1})
    world.hub.misbehave({"key": "tenant-0003", "status": 500})
    seen: list[tuple[Document, Artifact]] = []

    def look() -> None:
        seen.append((wait_until(lambda: awaiting(world)), wait_until(lambda: progress(world))))
        world.hub.misbehave()

    run = world.sync_tenants_while(look)

    (((live, shown),)) = seen
    (stage,) = live["stages"]
    assert {name: stage[name] for name in COUNTS} == {
        "total": 10,
        "success": 8,
        "failed": 1,
        "skipped": 0,
        "retrying": 1,
    }
    assert live["totals"] == {"total": 10, "success": 8, "failed": 1, "skipped": 0}
    assert shown.description == "tenant: 9 of 10 items: 8 ok, 1 failed, 1 retrying"
    assert shown.data is not None
    assert shown.data < 100
    assert run.document["totals"] == {"total": 10, "success": 9, "failed": 1, "skipped": 0}
    assert run.document["stages"][0]["retrying"] == 0


def awaiting(world: World) -> Document | None:
    """Return the run once all of its items but the one that awaits its retry are done."""
    return world.database.sync_runs.find_one(
        {"stages.success": 8, "stages.failed": 1, "stages.retrying": 1}
    )


def progress(world: World) -> Artifact | None:
    """Return the progress artifact of the run once it tells of nine items and of the retry."""
    (run,) = world.database.sync_runs.find()
    of_run = ArtifactFilterFlowRunId(any_=[UUID(run["flow_run_id"])])
    with get_client(sync_client=True) as prefect:
        found = prefect.read_artifacts(artifact_filter=ArtifactFilter(flow_run_id=of_run))
    told = ((each, each.description or "") for each in found)
    return next((each for each, words in told if "9 of 10" in words and "retrying" in words), None)
