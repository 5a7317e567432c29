"""MongoDB goes away in the midst of a sync: the sync waits, goes on, and its trail is whole."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from pymongo import MongoClient

from scripts.local_mongod import local_mongod
from scripts.local_process import free_port
from tests.integration.world import REPOSITORY, World, wait_until

ITEMS = 240


class OwnMongod:
    """A mongod that a test may kill and start again on the same data."""

    def __init__(self, folder: Path) -> None:
        self._data = folder / "data"
        self._port = free_port()
        self._running = ExitStack()
        self.uri = self._running.enter_context(local_mongod(self._data, self._port))

    def kill(self) -> None:
        pid = int((self._data / "mongod.lock").read_text())
        os.kill(pid, signal.SIGKILL)
        self._running.close()

    def start_again(self) -> None:
        self._running.enter_context(local_mongod(self._data, self._port))

    def stop(self) -> None:
        self._running.close()


@pytest.fixture
def own_mongod(tmp_path: Path) -> Iterator[OwnMongod]:
    mongod = OwnMongod(tmp_path)
    yield mongod
    mongod.stop()


def test_a_mongod_that_is_killed_and_comes_back(world: World, own_mongod: OwnMongod) -> None:
    with MongoClient(own_mongod.uri) as client:
        client["backoffice"].source_tenants.insert_many(
            [{"id": f"t-{n:03}", "name": "T", "version": 1} for n in range(ITEMS)]
        )
    world.hub.misbehave({"delay_ms": 40})
    impatient = f"{own_mongod.uri}/?serverSelectionTimeoutMS=300"
    named = {"MONGODB_URI": impatient, "MONGODB_DB": "backoffice"}
    with subprocess.Popen(
        [sys.executable, "-m", "scripts.sync_now"],
        cwd=REPOSITORY,
        env={**os.environ, **world.environment, **named, "ADMIN_RETRY_BASE_DELAY_MS": "300"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as sync:
        wait_until(lambda: len(world.hub.requests()) >= 40)
        own_mongod.kill()
        time.sleep(2)
        own_mongod.start_again()
        told, _ = sync.communicate(timeout=90)

    assert sync.returncode == 0, told[-3000:]
    with MongoClient(own_mongod.uri) as client:
        (run,) = client["backoffice"].sync_runs.find()
        steps = list(client["backoffice"].sync_steps.find())
    assert run["status"] == "success"
    assert run["totals"] == {"total": ITEMS, "success": ITEMS, "failed": 0, "skipped": 0}
    assert sorted(step["natural_key"] for step in steps) == [f"t-{n:03}" for n in range(ITEMS)]
    sent = [request["key"] for request in world.hub.requests()]
    assert set(sent) == {step["natural_key"] for step in steps}
    assert len(sent) - ITEMS <= 100, "more was sent again than records can be lost"
