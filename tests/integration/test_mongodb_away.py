"""MongoDB goes away in the midst of a sync: the sync waits and goes on, or ends and says why."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from pymongo import MongoClient
from pymongo.database import Database

from scripts.local.mongod import local_mongod
from scripts.local.process import free_port
from tests.integration.world import PATIENCE_SECONDS, REPOSITORY, World, wait_until

TENANTS, CLIENTS = 160, 20
AWAY = "MongoDB does not answer"


class OwnMongod:
    """A mongod that a test may kill, freeze, and start again on the same data."""

    def __init__(self, folder: Path) -> None:
        self._data = folder / "data"
        self._port = free_port()
        self._running = ExitStack()
        self.uri = self._running.enter_context(local_mongod(self._data, self._port))

    def kill(self) -> None:
        self._signal(signal.SIGKILL)
        self._running.close()

    def start_again(self) -> None:
        self._running.enter_context(local_mongod(self._data, self._port))

    def freeze(self, seconds: float) -> None:
        self._signal(signal.SIGSTOP)
        time.sleep(seconds)
        self._signal(signal.SIGCONT)

    def stop(self) -> None:
        self._running.close()

    def _signal(self, number: signal.Signals) -> None:
        os.kill(int((self._data / "mongod.lock").read_text()), number)


@pytest.fixture
def own_mongod(tmp_path: Path) -> Iterator[OwnMongod]:
    mongod = OwnMongod(tmp_path)
    with database_of(mongod) as database:
        database.source_tenants.insert_many(
            [{"id": f"t-{n:03}", "name": "T", "version": 1} for n in range(TENANTS)]
        )
        database.source_clients.insert_many(
            [
                {"id": f"c-{n:03}", "name": "C", "version": 1, "redirect_uris": []}
                for n in range(CLIENTS)
            ]
        )
    yield mongod
    mongod.stop()


@contextmanager
def database_of(mongod: OwnMongod) -> Iterator[Database[dict[str, Any]]]:
    # Journaled: what is put in outlives the kill that follows.
    with MongoClient(mongod.uri, journal=True) as client:
        yield client["backoffice"]


@contextmanager
def syncing(
    world: World, mongod: OwnMongod, uri_options: str = "", **settings: str
) -> Iterator["subprocess.Popen[str]"]:
    named = {"MONGODB_URI": f"{mongod.uri}/{uri_options}", "MONGODB_DB": "backoffice"}
    with subprocess.Popen(
        [sys.executable, "-m", "scripts.sync_now"],
        cwd=REPOSITORY,
        env={**os.environ, **world.environment, **named, **settings},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as sync:
        yield sync


def wait_for_requests(world: World, count: int) -> None:
    wait_until(lambda: world.hub.stats()["requests"] >= count)


def assert_all_is_in_once(world: World, mongod: OwnMongod) -> None:
    with database_of(mongod) as database:
        (run,) = database.sync_runs.find()
        steps = list(database.sync_steps.find())
    count = TENANTS + CLIENTS
    assert run["status"] == "success"
    assert run["totals"] == {"total": count, "success": count, "failed": 0, "skipped": 0}
    assert len({step["natural_key"] for step in steps}) == len(steps) == count
    sent = [request["key"] for request in world.hub.requests()]
    assert set(sent) == {step["natural_key"] for step in steps}
    assert len(sent) - count <= 100, "more was sent again than records can be lost"


def test_a_mongod_that_is_killed_or_frozen_at_any_moment_and_comes_back(
    world: World, own_mongod: OwnMongod
) -> None:
    world.hub.misbehave({"delay_ms": 40})
    own_mongod.kill()
    with syncing(world, own_mongod, ADMIN_RETRY_MAX="0") as sync:
        time.sleep(2)
        own_mongod.start_again()
        wait_for_requests(world, 10)
        own_mongod.freeze(5)
        # In a batch; between the stages, as a stage ends and the next is planned; at the end.
        for requests in (40, TENANTS, TENANTS + CLIENTS):
            wait_for_requests(world, requests)
            own_mongod.kill()
            time.sleep(1)
            own_mongod.start_again()
        told, _ = sync.communicate(timeout=PATIENCE_SECONDS)

    assert sync.returncode == 0, told[-3000:]
    assert_all_is_in_once(world, own_mongod)


def test_retries_of_batches_outlast_the_patience(
    world: World, own_mongod: OwnMongod, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MONGODB_URI", f"{own_mongod.uri}/?serverSelectionTimeoutMS=1000")
    monkeypatch.setenv("MONGODB_DB", "backoffice")
    monkeypatch.setenv("ADMIN_RETRY_BASE_DELAY_MS", "300")
    monkeypatch.setenv("ADMIN_RETRY_MAX", "9")
    world.hub.misbehave({"delay_ms": 40})

    def be_away() -> None:
        wait_for_requests(world, 40)
        own_mongod.kill()
        time.sleep(2)
        own_mongod.start_again()

    with ThreadPoolExecutor(1) as elsewhere:
        away = elsewhere.submit(be_away)
        assert world.state_of_sync().is_completed()
        away.result()
    assert_all_is_in_once(world, own_mongod)


def test_a_mongod_that_is_gone_ends_the_run_and_nothing_more_is_sent(
    world: World, own_mongod: OwnMongod, monkeypatch: pytest.MonkeyPatch
) -> None:
    # While the sync waits for MongoDB, all tenants could be sent.
    world.hub.misbehave({"delay_ms": 200})
    with syncing(world, own_mongod, "?serverSelectionTimeoutMS=15000") as sync:
        wait_for_requests(world, 40)
        own_mongod.kill()
        told, _ = sync.communicate(timeout=PATIENCE_SECONDS)

    assert sync.returncode == 1
    assert AWAY in told
    assert "check MONGODB_URI" in told
    assert "mongodb://" not in told
    sent = world.hub.stats()["requests"]
    assert sent < TENANTS

    world.hub.misbehave()
    own_mongod.start_again()
    with database_of(own_mongod) as database:
        assert sent - database.sync_steps.count_documents({}) <= 100
    monkeypatch.setenv("MONGODB_URI", own_mongod.uri)
    monkeypatch.setenv("MONGODB_DB", "backoffice")
    assert world.state_of_sync(mode="changed").is_completed()
    assert world.hub.stats()["stored"]["tenant"] == TENANTS
