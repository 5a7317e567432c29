"""What a run shows in Prefect: tables of items as they are, or would change, and its tags."""

import json
import uuid
from typing import Any

from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId

from tests.integration.world import SyncRun, World


def tables_of(run: SyncRun) -> dict[str | None, list[dict[str, Any]]]:
    """Return the table artifacts of a run by key."""
    flow_run_id = uuid.UUID(run.document["flow_run_id"])
    of_run = ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[flow_run_id]))
    with get_client(sync_client=True) as client:
        artifacts = client.read_artifacts(artifact_filter=of_run)
    return {each.key: json.loads(str(each.data)) for each in artifacts if each.type == "table"}


def tags_of(run: SyncRun) -> list[str]:
    """Return the tags of a run in Prefect."""
    with get_client(sync_client=True) as client:
        return client.read_flow_run(uuid.UUID(run.document["flow_run_id"])).tags


def test_runs_tell_what_is_not_in_against_the_run_before(world: World) -> None:
    first, second, third, fourth = world.add_tenants(4)
    world.hub.misbehave(*({"key": key, "code": "NOT_FOUND"} for key in (first, second)))
    tables = tables_of(world.sync(entities=["tenant"]))
    assert [row["change"] for row in tables["not-in"]] == ["newly failing"] * 2
    assert "gone" not in tables

    world.hub.misbehave(*({"key": key, "code": "NOT_FOUND"} for key in (second, third)))
    world.database.source_tenants.delete_one({"id": fourth})
    tables = tables_of(world.sync(entities=["tenant"]))
    new, still, back = tables["not-in"]
    assert (new["change"], new["natural key"], new["code"]) == ("newly failing", third, "NOT_FOUND")
    assert still["change"].startswith("still failing since 2")
    assert (still["natural key"], still["attempts"]) == (second, 2)
    assert (back["change"], back["natural key"]) == ("recovered", first)
    (gone,) = tables["gone"]
    assert (gone["entity type"], gone["natural key"]) == ("tenant", fourth)
    assert [row["gone"] for row in tables["summary"]] == [1, 1]


def test_a_dry_run_is_tagged_as_one_and_tells_what_would_change_field_by_field(
    world: World,
) -> None:
    keys = world.add_tenants(3)
    world.sync(entities=["tenant"])
    changed = {"$set": {"name": "New", "version": 2, "password_check_url": "https://a.example"}}
    world.database.source_tenants.update_one({"id": keys[1]}, changed)
    world.add("tenant", {"id": "zeta", "name": "Z", "version": 1})
    run = world.sync(entities=["tenant"], mode="changed", dry_run=True)
    assert set(tags_of(run)) == {"mode:changed", "dry-run", f"database:{world.database_name}"}
    rows = tables_of(run)["changes"]
    of_changed = [row for row in rows if row["natural key"] == keys[1]]
    assert {(row["field"], row["old"], row["new"]) for row in of_changed} >= {
        ("name", '"Tenant-0001"', '"New"'),
        ("password_check_url", None, "(not shown)"),
    }
    of_new = [row for row in rows if row["natural key"] == "zeta"]
    assert ("name", None, '"Z"') in {(row["field"], row["old"], row["new"]) for row in of_new}
    assert len(of_changed) + len(of_new) == len(rows)
