"""A Dask cluster: a scheduler and two workers, each a process of its own."""

import importlib
import os
import signal
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from distributed import Client

from scripts.local.process import free_port, running
from tests.integration.world import PATIENCE_SECONDS, REPOSITORY, Document, World, wait_until

WORKERS = ("worker-a", "worker-b")
THREADS_PER_WORKER = 4
MOST_UNRECORDED = 100
"""As many records may a process lose that is killed or cut off."""


@dataclass(frozen=True)
class Cluster:
    """A scheduler with two workers."""

    address: str
    process_ids: dict[str, int] = field(default_factory=dict)

    def kill(self, name: str) -> None:
        os.kill(self.process_ids[name], signal.SIGKILL)

    def use(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Let syncs of this process run here, 8 requests at once in 8 batches."""
        monkeypatch.setenv("ADMIN_TASK_RUNNER", "dask")
        monkeypatch.setenv("DASK_SCHEDULER_ADDRESS", self.address)
        monkeypatch.setenv("ADMIN_CONCURRENCY", "8")
        monkeypatch.setenv("ADMIN_MAX_TASK_RUNS", "20")


@contextmanager
def running_cluster(settings: Mapping[str, str], log_folder: Path) -> Iterator[Cluster]:
    """Run a cluster whose workers have these settings."""
    cluster = Cluster(f"tcp://127.0.0.1:{free_port()}")
    with ExitStack() as parts:

        def start(name: str, *arguments: str) -> None:
            process = parts.enter_context(
                running(
                    [sys.executable, "-m", "dask", *arguments, "--no-dashboard"],
                    name=name,
                    ready=lambda: _is_up(cluster.address),
                    timeout_seconds=PATIENCE_SECONDS,
                    env={**os.environ, **settings},
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
            client.wait_for_workers(len(WORKERS), timeout=PATIENCE_SECONDS)
            # Imports take one worker longer than another: with them done, both begin together.
            client.run(importlib.import_module, "tasks.upsert")
        yield cluster


def _is_up(address: str) -> bool:
    try:
        with Client(address, timeout=1):
            return True
    except OSError:
        return False


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
