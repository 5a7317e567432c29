"""Stage 1 as its developers run it: five functions behind `cargo lambda watch`."""

import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from scripts.seed_source import SEED_DOCUMENTS
from tasks.entities import ENTITY_NAMES, entity_type_named
from tests.integration.lambdas import Emulator, running_emulator
from tests.integration.world import HUB_TOKEN, PATIENCE_SECONDS, Hub, SyncRun, World, wait_until

SEED_DOT_ENV = """\
ADMIN_SYNC_TOKEN=hiroshi
ADMIN_TIMEOUT_MS=8000
ADMIN_RETRY_MAX=4
ADMIN_RETRY_BASE_DELAY_MS=300
ADMIN_CONCURRENCY=3

ADMIN_TENANTS_UPSERT_URL=http://localhost:9000/lambda-url/tenants-upsert/admin/tenants/upsert
ADMIN_CLIENTS_UPSERT_URL=http://localhost:9000/lambda-url/clients-upsert/admin/clients/upsert
ADMIN_SUBTENANTS_UPSERT_URL=http://localhost:9000/lambda-url/subtenants-upsert/admin/subtenants/upsert
ADMIN_DOMAINS_UPSERT_URL=http://localhost:9000/lambda-url/domains-upsert/admin/domains/upsert
ADMIN_BRANDING_UPSERT_URL=http://localhost:9000/lambda-url/branding-upsert/admin/branding/upsert

MONGODB_URI=mongodb://localhost:27017
MONGODB_DB=identity_backoffice
"""
SEED_KEYS = {
    name: document[entity_type_named(name).natural_key] for name, document in SEED_DOCUMENTS.items()
}


@pytest.fixture(scope="module")
def emulator(hub_process: Hub, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Emulator]:
    with running_emulator(hub_process, tmp_path_factory.mktemp("cargo-lambda")) as emulator:
        yield emulator


@pytest.fixture
def functions() -> Iterator[ExitStack]:
    """Where a test puts the functions that it starts: they are stopped after it."""
    with ExitStack() as functions:
        yield functions


@pytest.fixture
def world(world: World, emulator: Emulator, monkeypatch: pytest.MonkeyPatch) -> World:
    """A world with the seed's `.env`, but for ports, token and database."""
    for variable in world.environment:
        if variable.startswith("ADMIN_"):
            monkeypatch.delenv(variable)
    monkeypatch.setenv("ADMIN_SYNC_TOKEN", HUB_TOKEN)
    Path(".env").write_text(SEED_DOT_ENV.replace(":9000", f":{emulator.port}"))
    return world


def numbered(document: dict[str, Any], number: int) -> dict[str, Any]:
    """Return a seed document of which there can be many: its key and its parents are numbered."""
    return {
        field: f"{value}{number}" if value in SEED_KEYS.values() else value
        for field, value in document.items()
    }


def assert_all_tenants_are_in(world: World, run: SyncRun, keys: list[str]) -> None:
    assert run.document["status"] == "success"
    assert run.codes() == dict.fromkeys(keys)
    assert set(world.held("tenant")) == set(keys)


def test_the_seeds_five_items_are_in_whether_functions_reply_in_base64_or_not(
    world: World, emulator: Emulator, functions: ExitStack
) -> None:
    for number, name in enumerate(ENTITY_NAMES):
        functions.enter_context(emulator.function(name, replies_in_base64=number % 2 == 1))
    world.add_seed()
    run = world.sync()

    assert run.state.message == "5 of 5 items are in"
    assert run.codes() == dict.fromkeys(SEED_KEYS.values())
    assert all(len(step["sync_id"]) == 32 for step in run.steps)
    held = {name: world.held(name) for name in ENTITY_NAMES}
    assert held == {name: {SEED_KEYS[name]: SEED_DOCUMENTS[name]} for name in ENTITY_NAMES}


def test_fifty_items_a_type_are_in_sixteen_at_a_time(
    world: World, emulator: Emulator, functions: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ADMIN_CONCURRENCY", "16")
    monkeypatch.setenv("ADMIN_MAX_TASK_RUNS", "20")
    for name, document in SEED_DOCUMENTS.items():
        functions.enter_context(emulator.function(name))
        world.add(name, *({**numbered(document, each), "version": 1} for each in range(50)))
    run = world.sync()

    assert run.document["totals"] == {"total": 250, "success": 250, "failed": 0, "skipped": 0}
    assert world.hub.stats()["stored"] == dict.fromkeys(ENTITY_NAMES, 50)
    assert world.hub.stats()["max_in_flight"] == 1, "the emulator hands on one event at a time"


def test_an_item_whose_function_raises_is_tried_again(
    world: World, emulator: Emulator, functions: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ADMIN_TIMEOUT_MS", str(PATIENCE_SECONDS * 1000))
    monkeypatch.setenv("ADMIN_RETRY_MAX", "2")
    monkeypatch.setenv("ADMIN_RETRY_BASE_DELAY_MS", "50")
    once, always, never = world.add_tenants(3)
    world.hub.misbehave({"key": once, "attempts": [1], "drop": True}, {"key": always, "drop": True})
    functions.enter_context(emulator.function("tenant"))
    run = world.sync(entities=["tenant"])

    assert run.codes() == {once: None, always: "SERVER_ERROR", never: None}
    assert {step["natural_key"]: step["attempts"] for step in run.steps} == {
        once: 2,
        always: 3,
        never: 1,
    }
    assert run.step(always)["error"]["class"] == "transient"
    assert set(world.held("tenant")) == {once, never}


def test_an_item_whose_function_dies_is_in_once_it_is_started_again(
    world: World, emulator: Emulator, functions: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ADMIN_TIMEOUT_MS", "1000")
    monkeypatch.setenv("ADMIN_RETRY_MAX", "10")
    monkeypatch.setenv("ADMIN_RETRY_BASE_DELAY_MS", "50")
    keys = world.add_tenants(3)
    world.hub.misbehave({"key": keys[1], "attempts": [1], "after_store": True, "body": "die"})
    function = functions.enter_context(emulator.function("tenant"))

    def start_again() -> None:
        assert function.wait(PATIENCE_SECONDS) == -signal.SIGKILL
        functions.enter_context(emulator.function("tenant"))

    run = world.sync_tenants_while(start_again)

    assert_all_tenants_are_in(world, run, keys)
    assert run.step(keys[1])["attempts"] > 1
    first, *later = [request["outcome"] for request in world.hub.requests(keys[1])]
    assert (first, set(later)) == ("fault", {"repeated"})


def test_items_wait_for_a_function_that_starts_late(
    world: World, emulator: Emulator, functions: ExitStack
) -> None:
    keys = world.add_tenants(3)

    def start_late() -> None:
        wait_until(world.database.sync_items.find_one)  # an item is noted before it is sent
        time.sleep(1)
        functions.enter_context(emulator.function("tenant"))

    run = world.sync_tenants_while(start_late)

    assert_all_tenants_are_in(world, run, keys)
