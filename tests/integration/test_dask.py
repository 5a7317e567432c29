"""The same stage on a Dask cluster: a scheduler and two workers, each a process of its own."""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
from distributed import Client
from prefect.client.orchestration import get_client

from flows.audit_sweep import end_dead_runs
from tasks.limit import LIMIT_PREFIX
from tasks.settings import read_mongo_settings
from tests.integration.dask_cluster import (
    WORKERS,
    Cluster,
    assert_counted_to_the_end,
    running_cluster,
)
from tests.integration.served import process
from tests.integration.world import (
    PATIENCE_SECONDS,
    REPOSITORY,
    World,
    stage_runs,
    task_runs,
    wait_until,
)

DEFAULT_DASHBOARD_PORT = 8787
IMPATIENT = {
    "ADMIN_BREAKER_FAILURES": "4",
    "ADMIN_BREAKER_PROBE_MS": "200",
    "ADMIN_BREAKER_LIMIT_MS": "300",
}


@pytest.fixture(scope="module")
def cluster(prefect_api_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A cluster of which nothing is killed."""
    folder = tmp_path_factory.mktemp("cluster")
    with running_cluster({"PREFECT_API_URL": prefect_api_url}, folder) as cluster:
        yield cluster
    with get_client(sync_client=True) as prefect:
        limits = prefect.read_global_concurrency_limits(limit=200)
    ours = [limit for limit in limits if limit.name.startswith(LIMIT_PREFIX)]
    assert ours
    kept = [limit.name for limit in ours if limit.active_slots]
    assert kept == [], "workers that were stopped in order have kept their slots"


@pytest.fixture
def scheduler(cluster: Cluster, world: World, monkeypatch: pytest.MonkeyPatch) -> str:
    """The address of the cluster, whose workers have the world's settings."""
    cluster.use(world, monkeypatch)
    return cluster.address


def test_two_workers_do_what_threads_do(world: World, scheduler: str) -> None:
    world.add_seed()
    keys = world.add_tenants(399)
    world.hub.misbehave(
        {"key": keys[7], "attempts": [1, 2], "status": 503},
        {"key": keys[200], "code": "NOT_FOUND", "message": "no"},
        {"delay_ms": 5},
    )

    run = world.sync()

    assert run.document["totals"] == {"total": 404, "success": 403, "failed": 1, "skipped": 0}
    assert {key: code for key, code in run.codes().items() if code} == {keys[200]: "NOT_FOUND"}
    assert (run.step(keys[7])["attempts"], run.step(keys[7])["state"]) == (3, "Completed")
    sent = [request["key"] for request in world.hub.requests()]
    assert sorted(sent) == sorted([*(step["natural_key"] for step in run.steps), *[keys[7]] * 2])
    tenants = stage_runs(run.document["flow_run_id"])[0]
    batches = {str(task_run.id): task_run for task_run in task_runs(tenants, expected=8)}
    assert {step["task_run_id"] for step in run.steps} >= set(batches)
    with Client(scheduler) as client:
        executed = client.run(lambda dask_worker: dask_worker.state.executed_count)
        assert len(executed) == len(WORKERS)
        assert all(executed.values())


@pytest.mark.usefixtures("scheduler")
def test_no_more_requests_are_in_flight_than_the_concurrency_over_both_workers(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ADMIN_CONCURRENCY", "3")
    monkeypatch.setenv("ADMIN_MAX_TASK_RUNS", "24")
    keys = world.add_tenants(96)
    world.hub.misbehave({"delay_ms": 150})

    run = world.sync(entities=["tenant"])

    assert run.document["totals"]["success"] == len(keys)
    assert 1 < world.hub.stats()["max_in_flight"] <= 3


@pytest.mark.usefixtures("scheduler")
def test_a_wrong_token_stops_both_workers(world: World) -> None:
    world.add_tenants(400)
    world.hub.misbehave({"status": 401, "code": "INVALID_TOKEN", "message": "no"})

    run = world.sync()

    assert run.state.name == "Stopped"
    assert "INVALID_TOKEN" in run.state.message
    assert 1 <= len(world.hub.requests()) <= 8
    totals = run.document["totals"]
    assert (totals["total"], totals["success"]) == (400, 0)
    assert totals["skipped"] >= 392


@contextmanager
def an_impatient_worker(scheduler: str) -> Iterator[None]:
    with Client(scheduler) as client:
        worker = next(iter(client.scheduler_info()["workers"]))
        client.run(lambda: os.environ.update(IMPATIENT), workers=[worker])
        yield
        client.run(lambda: [os.environ.pop(name) for name in IMPATIENT], workers=[worker])


def test_what_one_worker_stops_is_recorded_by_all_under_its_code(
    world: World, scheduler: str
) -> None:
    world.add_seed()
    world.add_tenants(400)
    world.hub.misbehave({"entity_type": "tenant", "status": 500})

    with an_impatient_worker(scheduler):
        run = world.sync(entities=["tenant"])

    (stage,) = stage_runs(run.document["flow_run_id"])
    assert stage.state is not None
    assert stage.state.name == "Stopped"
    assert (stage.state.message or "").startswith("Stopped by HUB_UNAVAILABLE: ADMIN_TENANTS_")
    skipped = [step for step in run.steps if step["error"]["class"] == "skipped"]
    assert {step["error"]["code"] for step in skipped} == {"HUB_UNAVAILABLE"}
    assert len(skipped) == 401 - len({request["key"] for request in world.hub.requests()})
    assert run.document["totals"]["total"] == len(run.steps) == 401


@pytest.mark.usefixtures("scheduler")
def test_workers_stop_when_the_flow_run_is_dead(world: World, tmp_path: Path) -> None:
    world.add_tenants(400)
    world.hub.misbehave({"delay_ms": 1000})
    settings = {name: os.environ[name] for name in os.environ if name.startswith(("ADMIN", "DASK"))}
    with process(world, "scripts.sync_now", log_path=tmp_path / "sync.log", **settings) as sync:
        wait_until(lambda: len(world.hub.requests()) >= 20)
        sync.kill()
        sync.wait(PATIENCE_SECONDS)
    world.silence()
    (flow_run_id,) = end_dead_runs(read_mongo_settings())
    assert assert_counted_to_the_end(world)["flow_run_id"] == flow_run_id
    assert len(world.hub.requests()) < 400 - 100, "batches went on to their end"


def test_a_cluster_of_its_own_listens_on_loopback_only_and_on_free_ports(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a scheduler, a run starts one, and sends from there."""
    monkeypatch.setenv("ADMIN_TASK_RUNNER", "dask")
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    # Until somebody has looked, nothing is taken.
    monkeypatch.setenv("ADMIN_RETRY_MAX", "12")
    world.hub.misbehave({"status": 500})
    world.add_seed()
    others = psutil.Process().children(recursive=True)

    with ThreadPoolExecutor(1) as elsewhere:
        looking = elsewhere.submit(addresses_while_it_sends, world, others)
        run = world.sync(entities=["tenant", "client"])
        addresses = looking.result()

    assert run.document["totals"] == {"total": 2, "success": 2, "failed": 0, "skipped": 0}
    assert all(step["task_run_id"] for step in run.steps)
    assert {address.ip for address in addresses} == {"127.0.0.1"}
    assert DEFAULT_DASHBOARD_PORT not in {address.port for address in addresses}


def addresses_while_it_sends(world: World, others: list[psutil.Process]) -> set[Any]:
    """Return where this process and its children, but for others, listen; then mend the hub."""
    wait_until(world.hub.requests)
    this = psutil.Process()
    addresses = {
        connection.laddr
        for process in (this, *this.children(recursive=True))
        if process not in others
        for connection in process.net_connections("tcp")
        if connection.status == psutil.CONN_LISTEN
    }
    world.hub.misbehave()
    return addresses
