"""A dry run reads, validates and decides, and sends nothing; it says what it would do."""

import json
import uuid
from typing import Any

from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId

from tests.integration.world import World


def tables_of(flow_run_id: str) -> dict[str | None, list[dict[str, Any]]]:
    """Return the table artifacts of a run by key."""
    of_run = ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[uuid.UUID(flow_run_id)]))
    with get_client(sync_client=True) as client:
        artifacts = client.read_artifacts(artifact_filter=of_run)
    return {
        artifact.key: json.loads(str(artifact.data))
        for artifact in artifacts
        if artifact.type == "table"
    }


def test_a_dry_run_says_what_would_be_sent_and_what_would_fail(world: World) -> None:
    world.add_seed()
    world.add("tenant", {"id": "nameless", "version": 1}, {"id": "zeta", "name": "Z", "version": 1})
    world.add("client", {"name": "No URIs", "id": "broken", "version": 1})

    run = world.sync(dry_run=True)

    assert world.hub.requests() == []
    assert (run.state.name, run.document["status"]) == ("Partial", "partial")
    assert run.state.message == "Dry run: 6 of 8 items would be sent, 2 would fail"
    assert run.document["dry_run"] is True
    assert run.document["totals"] == {"total": 8, "success": 0, "failed": 2, "skipped": 6}
    tenants = run.document["stages"][0]
    assert (tenants["would_send"], tenants["first"]) == (2, "regnum-christi")
    assert {key for key, code in run.codes().items() if code == "WOULD_SEND"} == {
        "regnum-christi",
        "zeta",
        "semperaltius",
        "rcsa",
        "pagos.semperaltius.edu.mx",
        "branding_rcsa_001",
    }
    assert run.codes()["nameless"] == run.codes()["broken"] == "VALIDATION_ERROR"
    assert {error["natural_key"] for error in run.document["errors"]} == {"nameless", "broken"}
    tables = tables_of(run.document["flow_run_id"])
    assert tables["dry-run"][0] == {
        "stage": "tenant",
        "items": 3,
        "would be sent": 2,
        "first": "regnum-christi",
        "unchanged": 0,
        "would fail": 1,
    }
    assert [row["stage"] for row in tables["dry-run"]] == [
        "tenant",
        "client",
        "subtenant",
        "domain",
        "branding",
    ]
    assert {row["natural key"] for row in tables["failures"]} == {"nameless", "broken"}


def test_a_dry_run_of_what_has_changed_counts_the_rest(world: World) -> None:
    keys = world.add_tenants(30)
    world.sync(entities=["tenant"])
    world.database.source_tenants.update_one({"id": keys[4]}, {"$set": {"version": 2}})
    world.hub.reset()

    run = world.sync(entities=["tenant"], mode="changed", dry_run=True)

    assert world.hub.requests() == []
    assert run.state.is_completed()
    assert run.state.message == "Dry run: 1 of 30 items would be sent, 29 are unchanged"
    (stage,) = run.document["stages"]
    assert (stage["would_send"], stage["unchanged"], stage["first"]) == (1, 29, keys[4])
    assert run.codes() == {keys[4]: "WOULD_SEND"}


def test_a_dry_run_confirms_nothing(world: World) -> None:
    keys = world.add_tenants(3)
    world.sync(entities=["tenant"], dry_run=True)
    world.sync(entities=["tenant"], mode="changed")
    assert sorted(str(request["key"]) for request in world.hub.requests()) == keys
