"""What an end-to-end test holds in its hands: a fresh checkout, and the doors it opens."""

import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.responses import DeploymentResponse
from prefect.settings import PREFECT_API_URL, temporary_settings
from pymongo import MongoClient
from pymongo.database import Database

from scripts.local.process import free_port
from tests.integration.world import PATIENCE_SECONDS, REPOSITORY, Document, Hub, wait_until

_LOOKS_AGAIN_SOON = {"PREFECT_SERVER_DEPLOYMENTS_CONCURRENCY_SLOT_WAIT_SECONDS": "5"}
"""A run that waits for the one before it does so every 30 seconds otherwise."""
LEFT_OUT = (
    ".venv",
    ".local",
    ".git",
    ".env",
    "__pycache__",
    ".*_cache",
    ".hypothesis",
    "pytest-cache-files-*",
)


def copy_repository(folder: Path) -> Path:
    shutil.copytree(REPOSITORY, folder, ignore=shutil.ignore_patterns(*LEFT_OUT))
    return folder


def lend_environment(checkout: Path) -> None:
    """Give the checkout a `.venv` with this environment's packages, which bootstrap accepts."""
    own, lent = Path(sys.prefix), checkout / ".venv"
    venv.create(lent, symlinks=True)
    packages = Path(sysconfig.get_path("purelib"))
    lent_packages = lent / packages.relative_to(own)
    lent_packages.rmdir()
    lent_packages.symlink_to(packages)
    (lent / "bin" / "prefect").symlink_to(own / "bin" / "prefect")
    stamp = (own / "installed-from").read_text()
    (lent / "installed-from").write_text(stamp.replace(str(own), str(lent)))


def run(checkout: Path, *command: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a command of the README in the checkout, as a shell with the variables would."""
    return subprocess.run(
        command,
        cwd=checkout,
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        check=False,
        timeout=1800,
    )


def processes_of(checkout: Path) -> list[str]:
    """Command lines of live processes that name the checkout."""
    lines = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if str(checkout) in line:
            lines.append(line)
    return lines


@dataclass(frozen=True)
class Served:
    """The doors of a checkout while `./scripts/serve` runs there."""

    checkout: Path
    process: "subprocess.Popen[str]"
    mongodb_uri: str
    hub: Hub
    dashboard_url: str
    api_url: str

    @contextmanager
    def database(self) -> Iterator[Database[Document]]:
        with MongoClient[Document](self.mongodb_uri, tz_aware=True) as client:
            yield client["identity_backoffice"]

    def command(self, *command: str, **variables: str) -> subprocess.CompletedProcess[str]:
        """Run a command with the checkout's environment active, on this Prefect server."""
        path = f"{self.checkout / '.venv' / 'bin'}:{os.environ['PATH']}"
        settings = {"PREFECT_API_URL": f"{self.dashboard_url}/api", "PATH": path}
        return run(self.checkout, *command, **{**settings, **variables})

    @contextmanager
    def prefect(self) -> Iterator[SyncPrefectClient]:
        with (
            temporary_settings({PREFECT_API_URL: f"{self.dashboard_url}/api"}),
            get_client(sync_client=True) as client,
        ):
            yield client

    def deployment(self, name: str = "admin-sync/full") -> DeploymentResponse:
        with self.prefect() as client:
            return client.read_deployment_by_name(name)

    def start(self, deployment: str = "admin-sync/full") -> str:
        """Start a sync without waiting for it; returns its flow-run id."""
        with self.prefect() as client:
            deployment_id = client.read_deployment_by_name(deployment).id
            return str(client.create_flow_run_from_deployment(deployment_id).id)

    def newest_run(self) -> Document:
        """Return the run that began last, once there is one."""
        with self.database() as database:
            return wait_until(lambda: database.sync_runs.find_one(sort={"started_at": -1}))

    def steps_of(self, run: Document) -> list[Document]:
        with self.database() as database:
            return list(database.sync_steps.find({"run_id": run["_id"]}).sort({"created_at": 1}))

    def run_until_ended(self, **match: Any) -> Document:
        has_ended = {**match, "finished_at": {"$ne": None}}
        with self.database() as database:
            return wait_until(lambda: database.sync_runs.find_one(has_ended))

    def asked_of_prefect(self, path: str, **body: Any) -> Any:
        with self.prefect() as client:
            return client.request("POST", path, json=body).json()

    def artifacts_of(self, flow_run_id: str) -> dict[str, Any]:
        """Data of a flow run's artifacts, by key."""
        artifacts = self.asked_of_prefect(
            "/artifacts/filter", flow_runs={"id": {"any_": [flow_run_id]}}
        )
        return {artifact["key"]: artifact["data"] for artifact in artifacts}

    def whole_logs_of(self, flow_run_id: str) -> list[str] | None:
        """The logs of a flow run, once they are there to the end."""
        logs = self.asked_of_prefect(
            "/logs/filter", logs={"flow_run_id": {"any_": [flow_run_id]}}, sort="TIMESTAMP_ASC"
        )
        messages = [log["message"] for log in logs]
        return messages if any("Finished in state" in message for message in messages) else None


@dataclass(frozen=True)
class FailedSync:
    """What a sync has left behind of which one item failed."""

    command: subprocess.CompletedProcess[str]
    run: Document
    steps: list[Document]
    artifacts: dict[str, Any]
    logs: list[str]

    @property
    def failed_step(self) -> Document:
        (failed,) = [step for step in self.steps if not step["ok"]]
        return failed


def sync_that_fails(served: Served) -> FailedSync:
    """Sync with `./scripts/sync`, from another folder and without settings."""
    refusal = {"status": 404, "code": "NOT_FOUND", "message": "the client does not exist"}
    served.hub.misbehave({"entity_type": "domain", **refusal})
    command = run(served.checkout.parent, str(served.checkout / "scripts" / "sync"))
    served.hub.misbehave()
    document = served.newest_run()
    flow_run_id = document["flow_run_id"]

    def artifacts() -> dict[str, Any] | None:
        found = served.artifacts_of(flow_run_id)
        return found if "failures" in found else None

    return FailedSync(
        command,
        document,
        served.steps_of(document),
        wait_until(artifacts),
        wait_until(lambda: served.whole_logs_of(flow_run_id)),
    )


@contextmanager
def serving(checkout: Path) -> Iterator[Served]:
    """Run `./scripts/serve` in the checkout until the block ends, then press Ctrl-C."""
    with subprocess.Popen(
        ["./scripts/serve", "--prefect-port", "0"],
        cwd=checkout,
        env={**os.environ, "ADMIN_API_PORT": str(free_port()), **_LOOKS_AGAIN_SOON},
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            told = dict(_told_until_ready(process))
            yield Served(
                checkout,
                process,
                mongodb_uri=told["MongoDB"],
                hub=Hub(told["Stage 1 hub"]),
                dashboard_url=told["Prefect"],
                api_url=told["REST API"].removesuffix("/docs"),
            )
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(PATIENCE_SECONDS)


def _told_until_ready(process: "subprocess.Popen[str]") -> Iterator[tuple[str, str]]:
    assert process.stdout is not None
    for line in process.stdout:
        if "until Ctrl-C" in line:
            return
        label, _, rest = line.partition("  ")
        if rest:
            yield label, rest.split()[0]
    raise AssertionError("scripts/serve ended by itself")
