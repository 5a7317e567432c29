"""`sync_items` and the source as it is: what a run says is what Stage 1 holds."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from bson import Binary
from pymongo.collection import Collection

from scripts.local.hub import upsert_urls
from tests.integration.world import Document, World, set_all, started_hub, wait_until


def tenant(key: str, name: str = "T", version: int = 1, **fields: Any) -> Document:
    return {"id": key, "name": name, "version": version, **fields}


def tenants(world: World, **parameters: Any) -> Any:
    return world.sync(**{"entities": ["tenant"], "mode": "changed", **parameters})


def item(world: World, key: str) -> Document:
    (found,) = world.database.sync_items.find({"natural_key": key})
    return found


@contextmanager
def meanwhile(happening: Callable[[], None]) -> Iterator[None]:
    """Let something happen on a thread of its own while the block runs."""
    thread = threading.Thread(target=happening)
    thread.start()
    yield
    thread.join()


def test_an_item_has_one_record_of_what_stage_1_holds(world: World) -> None:
    world.add("tenant", tenant("acme", logo="l.png"))
    run = tenants(world)
    (step,) = run.steps
    record = item(world, "acme")
    assert record["hub"] == world.environment["ADMIN_TENANTS_UPSERT_URL"]
    assert record["entity_type"] == "tenant"
    confirmed = record["confirmed"]
    assert confirmed["body"] == world.held("tenant")["acme"]
    assert (confirmed["version"], confirmed["run_id"]) == (1, run.document["_id"])
    assert (confirmed["request_id"], confirmed["sync_id"]) == (step["request_id"], step["sync_id"])
    assert len(confirmed["digest"]) == 64
    assert record["last"]["ok"] is True
    assert record["confirmed_ids"] == [step["request_id"]]
    assert {"not_in_since", "in_doubt", "gone_since"}.isdisjoint(record)


def test_what_is_not_in_is_told_since_when_and_how_often_it_was_tried(world: World) -> None:
    world.add("tenant", tenant("acme"))
    world.hub.misbehave({"key": "acme", "code": "NOT_FOUND", "message": "no"})
    first = tenants(world)
    since = item(world, "acme")["not_in_since"]
    tenants(world)
    record = item(world, "acme")
    assert record["not_in_since"] == since
    assert (record["attempts"], record["last"]["error"]["code"]) == (2, "NOT_FOUND")
    assert first.document["started_at"] <= since
    world.hub.misbehave()
    assert tenants(world).document["status"] == "success"
    record = item(world, "acme")
    assert {"not_in_since", "attempts"}.isdisjoint(record)
    assert record["recovered"]["since"] == since


def test_another_stage_1_is_another_world(
    world: World, mongodb_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.add_seed()
    assert world.sync().document["status"] == "success"
    with started_hub(mongodb_uri, tmp_path / "hub.log", database="another_hub") as other:
        set_all(monkeypatch, upsert_urls(other.base_url))
        run = world.sync(mode="changed")
        assert run.document["totals"] == {"total": 5, "success": 5, "failed": 0, "skipped": 0}
        assert len(other.requests()) == 5
    set_all(monkeypatch, upsert_urls(world.hub.base_url))
    assert world.sync(mode="changed").document["totals"]["skipped"] == 5


@pytest.mark.parametrize("mode", ["full", "changed"])
def test_what_is_gone_from_the_source_is_told(world: World, mode: str) -> None:
    world.add("tenant", tenant("acme"), tenant("beta"), tenant("gamma"))
    tenants(world)
    world.database.source_tenants.delete_one({"id": "acme"})
    world.database.source_tenants.update_one({"id": "beta"}, {"$set": {"id": "delta"}})

    run = tenants(world, mode=mode)

    (stage,) = run.document["stages"]
    assert stage["gone"] == 2
    assert run.state.message.endswith("2 are gone from the source, and still enabled")
    since = item(world, "acme")["gone_since"]
    assert item(world, "beta")["gone_since"]
    assert "gone_since" not in item(world, "gamma")
    assert world.held("tenant")["acme"]["enabled"] is True
    world.add("tenant", tenant("beta"))
    tenants(world)
    assert item(world, "acme")["gone_since"] == since
    assert "gone_since" not in item(world, "beta")


def test_what_is_gone_is_disabled_where_that_is_asked_for(world: World) -> None:
    world.add("tenant", tenant("acme", logo="l.png"), tenant("beta"))
    tenants(world)
    world.database.source_tenants.delete_one({"id": "acme"})
    dry = tenants(world, dry_run=True, disable_gone=True)
    assert dry.document["message"].startswith("Dry run: 1 of 2 items would be sent")
    assert world.held("tenant")["acme"]["enabled"] is True

    run = tenants(world, disable_gone=True)

    assert run.document["status"] == "success"
    assert run.document["stages"][0]["gone"] == 0
    held = {"id": "acme", "name": "T", "logo": "l.png", "enabled": False}
    assert world.held("tenant")["acme"] == held
    assert (run.step("acme")["version"], run.step("acme")["ok"]) == ("1-gone", True)
    assert world.held("tenant")["beta"]["enabled"] is True
    again = tenants(world, disable_gone=True)
    assert again.document["totals"] == {"total": 1, "success": 0, "failed": 0, "skipped": 1}


def test_nothing_is_disabled_when_too_many_are_gone_at_once(world: World) -> None:
    keys = world.add_tenants(50)
    tenants(world)
    world.database.source_tenants.delete_many({"id": {"$in": keys[:11]}})
    run = tenants(world, disable_gone=True)
    assert run.document["status"] == "failed"
    (failed,) = [step for step in run.steps if not step["ok"]]
    assert failed["error"]["code"] == "GONE_TOO_MANY"
    assert "11 of the 50 items" in failed["error"]["message"]
    assert "MONGODB_DB" in failed["error"]["message"]
    assert all(held["enabled"] for held in world.held("tenant").values())
    world.add("tenant", tenant(keys[0], keys[0].title()))
    run = tenants(world, disable_gone=True)
    assert run.document["status"] == "success"
    assert sum(not held["enabled"] for held in world.held("tenant").values()) == 10


def test_a_database_without_source_collections_fails_the_run_and_is_named(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.add_seed()
    monkeypatch.setenv("MONGODB_DB", f"{world.database_name}x")
    state = world.state_of_sync()
    misspelt = world.database.client[f"{world.database_name}x"]
    (run,) = misspelt.sync_runs.find()
    world.database.client.drop_database(misspelt.name)
    assert state.is_failed()
    assert f"MONGODB_DB names the database {misspelt.name}" in str(state.message)
    assert run["status"] == "failed"
    assert world.hub.requests() == []


def test_one_source_collection_of_those_selected_is_enough(world: World) -> None:
    world.add("tenant", tenant("acme"))
    assert world.sync().document["status"] == "success"


def test_a_twin_that_appears_while_the_run_goes_on_never_overwrites_a_better_one(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ADMIN_CONCURRENCY", "1")
    world.add("tenant", tenant("slow"), tenant("acme", "Right", 2))
    world.hub.misbehave({"key": "slow", "delay_ms": 3000})

    def add_twin() -> None:
        wait_until(lambda: world.hub.stats()["in_flight"] == 1)
        world.add("tenant", tenant("acme", "Stale", 1))

    with meanwhile(add_twin):
        run = tenants(world, mode="full")

    assert world.held("tenant")["acme"]["name"] == "Right"
    outcomes = sorted(
        (step["version"], step["error"] and step["error"]["code"])
        for step in run.steps
        if step["natural_key"] == "acme"
    )
    assert outcomes == [(1, "DUPLICATE_KEY"), (2, None)]
    assert run.document["status"] == "partial"


def test_a_step_that_says_ok_is_never_unsaid_by_a_document_that_is_invalid_by_now(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ADMIN_MAX_TASK_RUNS", "1")
    monkeypatch.setenv("ADMIN_RETRY_BASE_DELAY_MS", "3000")
    world.add("tenant", tenant("acme"), tenant("slow"))
    world.hub.misbehave({"key": "slow", "attempts": [1], "status": 503})
    source: Collection[Document] = world.database.source_tenants

    def spoil() -> None:
        wait_until(lambda: world.hub.requests("slow"))
        source.update_one({"id": "acme"}, {"$set": {"name": Binary(b"x")}})

    with meanwhile(spoil):
        run = tenants(world, mode="full")

    assert run.codes() == {"acme": None, "slow": None}
    assert run.document["status"] == "success"
    assert "not_in_since" not in item(world, "acme")


def test_a_dry_run_shows_what_would_change_and_changes_nothing(world: World) -> None:
    world.add(
        "tenant",
        tenant("acme", password_check_url="https://a.example", theme={"color": "red"}),
        tenant("beta"),
    )
    tenants(world)
    before = list(world.database.sync_items.find())
    changes = {
        "name": "New",
        "version": 2,
        "theme.color": "blue",
        "password_check_url": "https://b.example",
    }
    world.database.source_tenants.update_one({"id": "acme"}, {"$set": changes})
    world.add("tenant", tenant("new"))

    run = tenants(world, dry_run=True)

    told = {
        change["field"]: (change["old"], change["new"]) for change in run.step("acme")["changes"]
    }
    assert told == {
        "name": ('"T"', '"New"'),
        "theme.color": ('"red"', '"blue"'),
        "password_check_url": ("(not shown)", "(not shown)"),
    }
    assert {change["old"] for change in run.step("new")["changes"]} == {None}
    assert run.document["stages"][0]["would_send"] == 2
    assert list(world.database.sync_items.find()) == before


def test_retention_of_steps_does_not_touch_the_items(world: World) -> None:
    world.add("tenant", tenant("acme"))
    tenants(world)
    world.database.sync_steps.delete_many({})
    world.hub.reset()
    assert tenants(world).document["totals"]["skipped"] == 1
    assert world.hub.requests() == []
