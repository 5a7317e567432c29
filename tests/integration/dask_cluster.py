"""A Dask cluster: a scheduler and two workers, each a process of its own."""

import importlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from distributed import Client

from scripts.local.process import free_port, running
from tests.integration.world import PATIENCE_SECONDS, REPOSITORY, Document, World, wait_until

WORKERS = ("worker-a", "worker-b")
THREADS_PER_WORKER = 4
MOST_UNRECORDED = 100
"""As many records may a process lose that is killed or cut off."""


class Cluster:
    """A scheduler with two workers, of which parts may be killed and started again."""

    def __init__(self, settings: Mapping[str, str], log_folder: Path) -> None:
        self.address = f"tcp://127.0.0.1:{free_port()}"
        self._settings = settings
        self._log_folder = log_folder
        self._started = ExitStack()
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    def start(self) -> None:
        """Start what is not running; returns once both workers are ready."""
        self._start("scheduler", "scheduler", "--host", self.address)
        for name in WORKERS:
            self._start(
                name,
                *("worker", self.address, "--name", name, "--host", "127.0.0.1", "--no-nanny"),
                *("--nthreads", str(THREADS_PER_WORKER)),
            )
        with Client(self.address) as client:
            client.wait_for_workers(len(WORKERS), timeout=PATIENCE_SECONDS)
            # Imports take one worker longer than another: with them done, both begin together.
            client.run(importlib.import_module, "tasks.upsert")

    def kill(self, name: str) -> None:
        self._processes[name].kill()

    def stop(self) -> None:
        self._started.close()

    def use(self, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
        """Let syncs of this world run here, 8 requests at once in 8 batches."""
        monkeypatch.setenv("ADMIN_TASK_RUNNER", "dask")
        monkeypatch.setenv("DASK_SCHEDULER_ADDRESS", self.address)
        monkeypatch.setenv("ADMIN_CONCURRENCY", "8")
        monkeypatch.setenv("ADMIN_MAX_TASK_RUNS", "20")
        environment = world.environment
        with Client(self.address) as client:
            client.run(lambda: os.environ.update(environment))

    def _start(self, name: str, *arguments: str) -> None:
        if name in self._processes and self._processes[name].poll() is None:
            return
        self._processes[name] = self._started.enter_context(
            running(
                [sys.executable, "-m", "dask", *arguments, "--no-dashboard"],
                name=name,
                ready=lambda: _is_up(self.address),
                timeout_seconds=PATIENCE_SECONDS,
                env={**os.environ, **self._settings},
                log_path=self._log_folder / f"{name}.log",
                cwd=REPOSITORY,
            )
        )


@contextmanager
def running_cluster(settings: Mapping[str, str], log_folder: Path) -> Iterator[Cluster]:
    """Run a cluster whose workers have these settings."""
    cluster = Cluster(settings, log_folder)
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()


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
