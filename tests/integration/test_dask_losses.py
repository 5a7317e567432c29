"""Parts of a Dask cluster die: nothing is lost, and nothing goes on."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.integration.dask_cluster import (
    WORKERS,
    Cluster,
    assert_counted_to_the_end,
    running_cluster,
)
from tests.integration.served import forget_slots
from tests.integration.world import World, wait_until

TENANTS = 400


@pytest.fixture(scope="module")
def mortal_cluster(
    prefect_api_url: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Cluster]:
    folder = tmp_path_factory.mktemp("mortal cluster")
    with running_cluster({"PREFECT_API_URL": prefect_api_url}, folder) as cluster:
        yield cluster


@pytest.fixture
def cluster(
    mortal_cluster: Cluster, world: World, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Cluster]:
    """A whole cluster, parts of which are going to be killed."""
    mortal_cluster.start()
    mortal_cluster.use(world, monkeypatch)
    yield mortal_cluster
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
