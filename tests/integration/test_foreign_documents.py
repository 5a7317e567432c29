"""Documents of other shapes in the collections of the trail stop nothing, and are shown."""

import asyncio
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
from bson import ObjectId, json_util

from deployments.api.app import create_app
from flows.audit_sweep import end_dead_runs
from tasks.entities import entity_type_named
from tasks.settings import read_api_settings, read_mongo_settings, read_settings
from tasks.trail.audit_trail import audit_trail
from tasks.trail.stages import RunStatus
from tests.integration.test_history import told
from tests.integration.world import Document, World

FIRST_VERSION = Path(__file__).parents[1] / "cases" / "trail-0.1.0.json"
NO_RUNS: list[Document] = [
    {"_id": "a note", "note": "somebody was here"},
    {"_id": ObjectId(), "status": "running", "active": True},
    {"_id": ObjectId(), "status": "running", "flow_run_id": 5, "started_at": "yesterday"},
    {"_id": ObjectId(), "status": "pending", "flow_run_id": "no UUID", "alive_at": "yesterday"},
    {"_id": ObjectId(), "status": "of another world", "stages": 7},
]


@pytest.fixture
def foreign(world: World) -> World:
    world.database.sync_runs.insert_many(NO_RUNS)
    world.database.sync_steps.insert_many([{"step": "none"}, {"step": "none"}])
    tenant = entity_type_named("tenant")
    item = {"hub": read_settings().hub(tenant), "entity_type": "tenant"}
    odd = {"natural_key": "tenant-0001", "confirmed": "yes", "in_doubt": 5, "revision": "x"}
    world.database.sync_items.insert_many([{"item": "none"}, {**item, **odd}])
    return world


def get(path: str, **query: Any) -> httpx.Response:
    async def answer() -> httpx.Response:
        app = create_app(read_api_settings(), read_mongo_settings())
        transport = httpx.ASGITransport(app)
        client = httpx.AsyncClient(transport=transport, base_url="http://localhost")
        async with app.router.lifespan_context(app), client:
            return await client.get(f"/api{path}", params=query)

    return asyncio.run(answer())


def test_they_stop_neither_a_run_nor_a_sweep_nor_a_door(foreign: World) -> None:
    keys = foreign.add_tenants(3)
    run = foreign.sync(mode="changed")
    assert run.document["status"] == "success"
    assert foreign.held("tenant").keys() == set(keys)
    assert foreign.sync(mode="changed").document["totals"]["skipped"] == 3
    assert end_dead_runs(read_mongo_settings()) == []
    run_id = str(run.document["_id"])

    listed = get("/admin/sync/runs", limit=20)
    assert listed.status_code == 200
    shown = {entry["id"]: entry for entry in listed.json()["items"]}
    assert shown[run_id]["status"] == "success"
    for document in NO_RUNS:
        assert json_util.loads(shown[str(document["_id"])]["document"]) == document
    for path in ("/metrics", "/admin/sync/items", f"/admin/sync/runs/{run_id}/steps"):
        assert get(path).status_code == 200, path
    assert get(f"/admin/sync/runs/{NO_RUNS[1]['_id']}").status_code == 200
    assert "somebody was here" in told(foreign)
    assert "somebody was here" in json.dumps(json.loads(told(foreign, "--json")))
    told(foreign, "--failed")


def test_the_trail_of_the_first_version_is_read_as_ours(world: World) -> None:
    trail = json_util.loads(FIRST_VERSION.read_text())
    for collection, documents in trail.items():
        world.database[collection].insert_many(documents)
    (run,) = trail["sync_runs"]
    shown = get(f"/admin/sync/runs/{run['_id']}").json()
    assert (shown["status"], shown["totals"]["failed"]) == ("partial", 1)
    steps = get(f"/admin/sync/runs/{run['_id']}/steps", ok=False).json()
    assert [step["natural_key"] for step in steps["items"]] == ["tenant-0001"]
    assert get("/admin/sync/items/tenant/tenant-0001").json()["history"]["total"] == 1
    assert "NOT_FOUND" in told(world, str(run["_id"]))
    samples = get("/metrics").text.splitlines()
    assert 'admin_sync_items_total{entity_type="tenant",outcome="failed"} 1.0' in samples
    assert 'admin_sync_runs{status="partial"} 1.0' in samples
    assert datetime.fromisoformat(shown["finished_at"]).astimezone(UTC).year == 2026


def test_a_run_of_the_first_version_is_ended_and_retried_as_ours(world: World) -> None:
    (run,) = json_util.loads(FIRST_VERSION.read_text())["sync_runs"]
    world.database.sync_runs.insert_one({**run, "status": "running", "finished_at": None})
    trail = audit_trail(read_mongo_settings())
    (unfinished,) = trail.ownership.unfinished()
    assert (unfinished.run_id, unfinished.silent_seconds) == (run["_id"], None)
    trail.counting.end_run(run["_id"], RunStatus.CRASHED, "its process is gone", None)
    ended = trail.runs.find(run["_id"])
    assert ended is not None
    assert ended.status is RunStatus.CRASHED
    attempt = trail.ownership.take(run["_id"], ended.options, datetime.now(UTC))
    assert attempt is not None
    assert attempt.number == 1
