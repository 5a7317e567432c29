"""The same stage on a Dask cluster: a scheduler and two workers, each a process of its own."""

import importlib
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest
from distributed import Client
from prefect.client.orchestration import get_client

from flows.audit_sweep import end_dead_runs
from flows.task_runners import stage_runner
from scripts.local.process import free_port, running
from tasks.settings import read_mongo_settings, read_settings
from tasks.slots import LIMIT_NAME
from tests.integration.served import forget_slots, process
from tests.integration.world import REPOSITORY, Document, World, stage_runs, task_runs, wait_until

WORKERS = ("worker-a", "worker-b")
THREADS_PER_WORKER = 4
TENANTS = 400
DEFAULT_DASHBOARD_PORT = 8787
MOST_UNRECORDED = 100
"""As many records may a process lose that is killed or cut off."""


@dataclass(frozen=True)
class Cluster:
    """A scheduler with two workers, each a process of its own."""

    address: str
    process_ids: dict[str, int] = field(default_factory=dict)

    def kill(self, name: str) -> None:
        os.kill(self.process_ids[name], signal.SIGKILL)


@contextmanager
def running_cluster(world: World, log_folder: Path) -> Iterator[Cluster]:
    """Run a cluster whose workers have the world's settings."""
    cluster = Cluster(f"tcp://127.0.0.1:{free_port()}")
    with ExitStack() as parts:

        def start(name: str, *arguments: str) -> None:
            process = parts.enter_context(
                running(
                    [sys.executable, "-m", "dask", *arguments, "--no-dashboard"],
                    name=name,
                    ready=lambda: is_up(cluster.address),
                    env={**os.environ, **world.environment},
                    log_path=log_folder / f"{name}.log",
                    cwd=REPOSITORY,
                )
            )
            cluster.process_ids[name] = process.pid

        start("scheduler", "scheduler", "--host", cluster.address)
        for name in WORKERS:
            start(
                name,
                *("worker", cluster.address, "--name", name, "--host", "127.0.0.1", "--no-nanny"),
                *("--nthreads", str(THREADS_PER_WORKER)),
            )
        with Client(cluster.address) as client:
            client.wait_for_workers(len(WORKERS), timeout=30)
            # Imports take one worker longer than another: with them done, both begin together.
            client.run(importlib.import_module, "tasks.upsert")
        yield cluster


@pytest.fixture
def cluster(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """A cluster of which parts are going to be killed."""
    with running_cluster(world, tmp_path) as cluster:
        use(cluster, monkeypatch)
        yield cluster
    forget_slots()


@pytest.fixture
def scheduler(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of a cluster that lives."""
    with running_cluster(world, tmp_path) as cluster:
        use(cluster, monkeypatch)
        yield cluster.address
    with get_client(sync_client=True) as prefect:
        limit = prefect.read_global_concurrency_limit_by_name(LIMIT_NAME)
    assert limit.active_slots == 0, "workers that were stopped in order have kept their slots"


def use(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let syncs of this process run on a cluster, 8 requests at once in 8 batches."""
    monkeypatch.setenv("ADMIN_TASK_RUNNER", "dask")
    monkeypatch.setenv("DASK_SCHEDULER_ADDRESS", cluster.address)
    monkeypatch.setenv("ADMIN_CONCURRENCY", "8")
    monkeypatch.setenv("ADMIN_MAX_TASK_RUNS", "20")


def is_up(address: str) -> bool:
    try:
        with Client(address, timeout=1):
            return True
    except OSError:
        return False


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
    keys = world.add_tenants(240)
    world.hub.misbehave({"delay_ms": 30})

    run = world.sync(entities=["tenant"])

    assert run.document["totals"]["success"] == len(keys)
    assert world.hub.stats()["max_in_flight"] == 3


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


def test_what_one_worker_stops_is_recorded_by_all_under_its_code(
    world: World, scheduler: str
) -> None:
    impatient = {
        "ADMIN_BREAKER_FAILURES": "4",
        "ADMIN_BREAKER_PROBE_MS": "200",
        "ADMIN_BREAKER_LIMIT_MS": "300",
    }
    with Client(scheduler) as client:
        worker = next(iter(client.scheduler_info()["workers"]))
        client.run(lambda: os.environ.update(impatient), workers=[worker])
    world.add_seed()
    world.add_tenants(400)
    world.hub.misbehave({"status": 503})

    run = world.sync()

    assert run.state.name == "Stopped"
    assert run.state.message.startswith("Stopped by HUB_UNAVAILABLE: ")
    skipped = [step for step in run.steps if step["error"]["class"] == "skipped"]
    assert {step["error"]["code"] for step in skipped} == {"HUB_UNAVAILABLE"}
    assert len(skipped) == 405 - len({request["key"] for request in world.hub.requests()})
    assert run.document["totals"]["total"] == len(run.steps) == 405


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
    world.hub.misbehave({"delay_ms": 20})
    with killing(cluster, WORKERS[0], world):
        run = world.sync()
    assert run.document["status"] == "success"
    assert run.document["totals"]["success"] == len(run.steps) == TENANTS
    assert len(world.hub.requests()) <= TENANTS + 100


def test_a_scheduler_that_is_killed_ends_the_run_and_its_workers(
    world: World, cluster: Cluster
) -> None:
    world.add_tenants(TENANTS)
    world.hub.misbehave({"delay_ms": 50})
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
    world.hub.misbehave({"delay_ms": 200})
    settings = {name: os.environ[name] for name in os.environ if name.startswith(("ADMIN", "DASK"))}
    with process(world, "scripts.sync_now", log_path=tmp_path / "sync.log", **settings) as sync:
        wait_until(lambda: len(world.hub.requests()) >= 20)
        sync.kill()
        sync.wait(30)
    assert cluster.process_ids
    (flow_run_id,) = end_dead_runs(read_mongo_settings(), silent_seconds=0)
    assert assert_counted_to_the_end(world)["flow_run_id"] == flow_run_id
    assert len(world.hub.requests()) < 150, "batches went on to their end"


def test_without_a_scheduler_the_run_has_a_cluster_of_its_own(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ADMIN_TASK_RUNNER", "dask")
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    world.add_seed()

    run = world.sync(entities=["tenant", "client"])

    assert run.document["totals"] == {"total": 2, "success": 2, "failed": 0, "skipped": 0}
    assert all(step["task_run_id"] for step in run.steps)


@pytest.mark.usefixtures("world")
def test_a_cluster_of_its_own_listens_on_loopback_only_and_on_free_ports(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("ADMIN_TASK_RUNNER", "dask")
    with stage_runner(read_settings()):
        this = psutil.Process()
        listening = {
            connection.laddr
            for process in (this, *this.children(recursive=True))
            for connection in process.net_connections("tcp")
            if connection.status == psutil.CONN_LISTEN
        }
    assert {address.ip for address in listening} == {"127.0.0.1"}
    assert DEFAULT_DASHBOARD_PORT not in {address.port for address in listening}
