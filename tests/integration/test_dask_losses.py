"""Parts of a Dask cluster die, or the run does: nothing is lost, and nothing goes on."""

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from flows.audit_sweep import end_dead_runs
from tasks.settings import read_mongo_settings
from tests.integration.dask_cluster import WORKERS, Cluster, running_cluster
from tests.integration.served import forget_slots, process
from tests.integration.world import PATIENCE_SECONDS, Document, World, wait_until

TENANTS = 400
MOST_UNRECORDED = 100
"""As many records may a process lose that is killed or cut off."""


@pytest.fixture
def cluster(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """A cluster of which parts are going to be killed."""
    with running_cluster(world.environment, tmp_path) as cluster:
        cluster.use(monkeypatch)
        yield cluster
    forget_slots()


@contextmanager
def killing(cluster: Cluster, name: str, world: World) -> Iterator[None]:
    """Kill a part of the cluster in the midst of what goes on in the block."""

    def kill() -> None:
        wait_until(lambda: len(world.hub.requests()) >= 100)
        cluster.kill(name)

    killer = threading.Thread(target=kill)
    killer.start()
    yield
    killer.join()


def assert_counted_to_the_end(world: World) -> Document:
    """Wait until nothing more is sent: what is on record is what the run tells of."""
    runs, steps = world.database.sync_runs, world.database.sync_steps

    def is_told() -> bool:
        run, stored = runs.find_one() or {}, world.hub.stats()["stored"]["tenant"]
        time.sleep(2)
        return (
            run["totals"]["total"] == run["stages"][0]["total"] == steps.count_documents({})
            and run["totals"]["success"] == steps.count_documents({"ok": True})
            and 0 <= stored - run["totals"]["success"] <= MOST_UNRECORDED
            and stored == world.hub.stats()["stored"]["tenant"]
        )

    wait_until(is_told)
    run: Document = runs.find_one() or {}
    return run


def test_a_worker_that_is_killed_loses_nothing(world: World, cluster: Cluster) -> None:
    world.add_tenants(TENANTS)
    world.hub.misbehave({"delay_ms": 100})
    with killing(cluster, WORKERS[0], world):
        run = world.sync()
    assert run.document["status"] == "success"
    assert run.document["totals"]["success"] == len(run.steps) == TENANTS
    assert len(world.hub.requests()) <= TENANTS + 100


def test_a_scheduler_that_is_killed_ends_the_run_and_its_workers(
    world: World, cluster: Cluster
) -> None:
    world.add_tenants(TENANTS)
    world.hub.misbehave({"delay_ms": 200})
    with killing(cluster, "scheduler", world):
        run = world.sync()
    assert run.document["status"] == "failed"
    assert "scheduler" in run.document["message"]
    assert_counted_to_the_end(world)
    assert len(world.hub.requests()) < TENANTS


def test_workers_stop_when_the_flow_run_is_dead(
    world: World, cluster: Cluster, tmp_path: Path
) -> None:
    world.add_tenants(TENANTS)
    world.hub.misbehave({"delay_ms": 1000})
    settings = {name: os.environ[name] for name in os.environ if name.startswith(("ADMIN", "DASK"))}
    with process(world, "scripts.sync_now", log_path=tmp_path / "sync.log", **settings) as sync:
        wait_until(lambda: len(world.hub.requests()) >= 20)
        sync.kill()
        sync.wait(PATIENCE_SECONDS)
    assert cluster.process_ids
    (flow_run_id,) = end_dead_runs(read_mongo_settings(), silent_seconds=0)
    assert assert_counted_to_the_end(world)["flow_run_id"] == flow_run_id
    assert len(world.hub.requests()) < TENANTS - 100, "batches went on to their end"
