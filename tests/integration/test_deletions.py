"""What somebody deletes in the midst of a run: it ends, and its record is true."""

from collections import Counter
from concurrent.futures import ThreadPoolExecutor

from tests.integration.world import Document, World, wait_until

SLOW = {"entity_type": "client", "delay_ms": 300}
CLIENTS = 30
"""They take three seconds."""


def test_the_run_s_document(world: World) -> None:
    world.add_tenants(5)
    world.add(
        "client", *({"id": f"c{n}", "name": "C", "redirect_uris": []} for n in range(CLIENTS))
    )
    world.hub.misbehave(SLOW)

    def delete() -> Document:
        wait_until(lambda: len(world.hub.requests()) > 7)
        run = world.database.sync_runs.find_one_and_delete({})
        assert run is not None
        return run

    with ThreadPoolExecutor(1) as elsewhere:
        deletion = elsewhere.submit(delete)
        state = world.state_of_sync(entities=["tenant", "client", "domain"])
        before = deletion.result()

    run = world.run_of(state)
    assert run.document["_id"] == before["_id"]
    assert state.name == "Stopped"
    assert "its document in sync_runs is gone" in run.document["message"]
    assert run.document["status"] == "failed"
    counted = Counter("success" if step["ok"] else step["error"]["class"] for step in run.steps)
    assert counted["success"] == len(world.held("tenant")) + len(world.held("client"))
    assert run.document["totals"] == {
        "total": 5 + CLIENTS,
        "success": counted["success"],
        "failed": 0,
        "skipped": counted["skipped"],
    }
    of_tenants, of_clients, of_domains = run.document["stages"]
    assert (of_tenants["success"], of_tenants["status"]) == (5, "success")
    assert of_clients["success"] == counted["success"] - 5
    assert of_domains["total"] == 0


def test_the_indexes(world: World) -> None:
    world.add_tenants(CLIENTS)
    world.hub.misbehave({"delay_ms": 100}, {"key": "tenant-0029", "attempts": [1], "drop": True})

    def drop() -> None:
        wait_until(lambda: len(world.hub.requests()) > 7)
        for collection in (world.database.sync_runs, world.database.sync_steps):
            collection.drop_indexes()
        world.database.sync_items.drop_indexes()

    run = world.sync_tenants_while(drop)
    assert run.document["status"] == "success"
    assert run.document["totals"]["success"] == CLIENTS == len(run.steps)
    assert world.database.sync_items.count_documents({}) == CLIENTS
