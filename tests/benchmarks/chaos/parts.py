"""The parts of all rounds: servers that can be killed, started again and stalled."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final
from unittest.mock import patch

import psutil  # type: ignore[import-untyped]
from pymongo import MongoClient
from pymongo.database import Database

from scripts.local.hub import upsert_urls
from scripts.local.mongod import local_mongod
from scripts.local.prefect import local_prefect_server
from scripts.local.process import free_port, running
from tests.benchmarks.chaos.hub import ChaosHub
from tests.benchmarks.parts import Part, as_part, environment_without_settings
from tests.benchmarks.testbed import REPOSITORY
from tests.benchmarks.workload import Document

DATABASE: Final = "chaos"
STAGING: Final = "staging"
"""The other environment of a round with two."""
TIMEOUT_SECONDS: Final = 0.5
"""Longest time that the sync waits for an answer of Stage 1."""
_SERVER_SETTINGS: Final = {
    # A run that waits for the one before it looks again that soon.
    "PREFECT_SERVER_DEPLOYMENTS_CONCURRENCY_SLOT_WAIT_SECONDS": "3",
}
_SYNC_SETTINGS: Final = {
    "ADMIN_CONCURRENCY": "8",
    "ADMIN_TIMEOUT_MS": str(round(TIMEOUT_SECONDS * 1000)),
    "ADMIN_RETRY_BASE_DELAY_MS": "100",
    "ADMIN_RETRY_AFTER_MAX_MS": "50",
    "PREFECT_WORKER_QUERY_SECONDS": "1",
}


class Server:
    """A server in a process of its own, on the same port and data at each start."""

    def __init__(self, start: Callable[[], AbstractContextManager[Part]]) -> None:
        self._start = start
        self._starts = ExitStack()
        self.start()

    def start(self) -> None:
        self.part = self._starts.enter_context(self._start())

    def kill(self) -> None:
        """Send SIGKILL; returns when the process has ended. Its own child processes go on."""
        os.kill(self.part.pid, signal.SIGKILL)
        os.waitid(os.P_PID, self.part.pid, os.WEXITED | os.WNOWAIT)

    def restart(self, away_seconds: float) -> None:
        """Kill the process, and start it again after a while."""
        self.kill()
        time.sleep(away_seconds)
        self.start()

    def stall(self, seconds: float) -> None:
        """Stop the process for that long, with SIGSTOP and SIGCONT."""
        os.kill(self.part.pid, signal.SIGSTOP)
        try:
            time.sleep(seconds)
        finally:
            os.kill(self.part.pid, signal.SIGCONT)

    def stop(self) -> None:
        """Stop everything that was started."""
        self._starts.close()


@dataclass(frozen=True)
class Parts:
    """Everything that a sync needs, and the database that it works on."""

    mongodb: Server
    prefect: Server
    worker: Server
    hub: ChaosHub
    database: Database[Document]
    environment: dict[str, str]
    """The variables of a shell in which an operator works."""

    @property
    def suffix(self) -> str:
        """What the names of this environment end in."""
        return _suffix(self.environment)

    def processes_of(self, flow_run_id: str) -> list[psutil.Process]:
        """Return the living processes that a worker has started for a flow run."""
        return [p for p in psutil.process_iter() if self._is_of(p, flow_run_id)]

    def _is_of(self, process: psutil.Process, flow_run_id: str) -> bool:
        try:
            variables = process.environ()
        except psutil.Error:
            return False
        return bool(variables.get("PREFECT__FLOW_RUN_ID") == flow_run_id)


@contextmanager
def chaos_parts(
    prefect_home_in: Callable[[Path], Path] = Path, **sync_settings: str
) -> Iterator[Parts]:
    """Start all parts, with their data in a temporary folder.

    `sync_settings` are more variables for the worker and its syncs.
    """
    with (
        tempfile.TemporaryDirectory(prefix="chaos-") as folder,
        ExitStack() as parts,
    ):
        scratch = Path(folder)
        hub = parts.enter_context(_hub(scratch / "hub"))
        mongodb = _server(parts, partial(_mongod, scratch / "mongodb", free_port()))
        home = prefect_home_in(scratch / "prefect")
        prefect = _server(parts, partial(_prefect, home, free_port()))
        environment = {
            **environment_without_settings(),
            **_SYNC_SETTINGS,
            **sync_settings,
            **upsert_urls(hub.base_url),
            "MONGODB_URI": mongodb.part.address,
            "MONGODB_DB": DATABASE,
            "PREFECT_API_URL": prefect.part.address,
            "PREFECT_HOME": str(scratch / "prefect-client"),
            "PREFECT_SERVER_ALLOW_EPHEMERAL_MODE": "false",
            "DO_NOT_TRACK": "1",
            "PWD": str(REPOSITORY),
        }
        run_in_repository(environment, "deployments.deploy")
        worker = _server(parts, partial(_worker, environment, scratch / "worker.log"))
        client: MongoClient[Document] = parts.enter_context(
            MongoClient(mongodb.part.address, tz_aware=True)
        )
        yield Parts(mongodb, prefect, worker, hub, client[DATABASE], environment)


@contextmanager
def staging_beside(parts: Parts) -> Iterator[Parts]:
    """Start another environment on the same Prefect server and MongoDB.

    It has a database, a hub and a worker of its own.
    """
    with tempfile.TemporaryDirectory(prefix="chaos-staging-") as folder, ExitStack() as more:
        scratch = Path(folder)
        hub = more.enter_context(_hub(scratch / "hub"))
        database = f"{DATABASE}-{STAGING}"
        environment = {
            **parts.environment,
            **upsert_urls(hub.base_url),
            "MONGODB_DB": database,
            "ADMIN_ENVIRONMENT": STAGING,
            "PREFECT_HOME": str(scratch / "prefect-client"),
        }
        run_in_repository(environment, "deployments.deploy")
        worker = _server(more, partial(_worker, environment, scratch / "worker.log"))
        client: MongoClient[Document] = more.enter_context(
            MongoClient(parts.mongodb.part.address, tz_aware=True)
        )
        yield Parts(parts.mongodb, parts.prefect, worker, hub, client[database], environment)


def run_in_repository(environment: dict[str, str], module: str, *arguments: str) -> None:
    """Run a module with `python -m`, as an operator would.

    Raises:
        subprocess.CalledProcessError: it failed.
    """
    subprocess.run(
        [sys.executable, "-m", module, *arguments],
        cwd=REPOSITORY,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=True,
    )


def _server(parts: ExitStack, start: Callable[[], AbstractContextManager[Part]]) -> Server:
    server = Server(start)
    parts.callback(server.stop)
    return server


@contextmanager
def _hub(data: Path) -> Iterator[ChaosHub]:
    """Run a hub over a MongoDB of its own: that of the sync is killed and stalled."""
    with (
        local_mongod(data) as uri,
        MongoClient[Document](uri) as client,
        ChaosHub(client["hub"]) as hub,
    ):
        yield hub


def _mongod(data: Path, port: int) -> AbstractContextManager[Part]:
    return as_part(local_mongod(data, port))


@contextmanager
def _prefect(home: Path, port: int) -> Iterator[Part]:
    with ExitStack() as server:
        with patch.dict(os.environ, _SERVER_SETTINGS):
            part = server.enter_context(as_part(local_prefect_server(home, port)))
        yield part


@contextmanager
def _worker(environment: dict[str, str], log_path: Path) -> Iterator[Part]:
    log_path.unlink(missing_ok=True)
    work_pool = f"backoffice{_suffix(environment)}"
    with running(
        [sys.executable, "-m", "prefect", "worker", "start", "--pool", work_pool],
        name="The worker",
        ready=lambda: "started!" in log_path.read_text(errors="replace"),
        env=environment,
        log_path=log_path,
        timeout_seconds=60.0,
        cwd=REPOSITORY,
    ) as process:
        yield Part(work_pool, process.pid)


def _suffix(environment: Mapping[str, str]) -> str:
    name = environment.get("ADMIN_ENVIRONMENT")
    return f"-{name}" if name else ""
