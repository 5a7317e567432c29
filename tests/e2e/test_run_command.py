"""`./scripts/run` as a new user runs it, in a fresh checkout."""

import re
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from bson import ObjectId
from pymongo import MongoClient

from scripts.local.hub import upsert_urls
from scripts.local.process import free_port
from tests.e2e.checkout import copy_repository, processes_of, run
from tests.integration.world import PATIENCE_SECONDS, Document, wait_until

pytestmark = pytest.mark.timeout(1800)


def run_id_in(told: str) -> ObjectId:
    found = re.search(r"run_id +([0-9a-f]{24})\n", told)
    assert found, told
    return ObjectId(found.group(1))


def test_the_first_start_installs_what_the_lock_says_and_a_second_one_nothing(
    tmp_path: Path,
) -> None:
    """One package stands for all: `./scripts/test` installs them so, where there is no `.venv`."""
    checkout = copy_repository(tmp_path / "project")
    lock = checkout / "requirements.lock"
    (package,) = re.findall(r"^idna==(?:.*\\\n)+.*\n", lock.read_text(), re.MULTILINE)
    lock.write_text(package)
    first = run(checkout, "./scripts/bootstrap")
    assert (first.returncode, "Installing" in first.stderr) == (0, True), first.stderr
    assert run(checkout, ".venv/bin/python", "-c", "import idna").returncode == 0
    second = run(checkout, "./scripts/bootstrap")
    assert (second.returncode, second.stdout + second.stderr) == (0, "")


def test_the_first_run_seeds_syncs_and_tells(
    first_run: subprocess.CompletedProcess[str], checkout: Path
) -> None:
    assert first_run.returncode == 0, first_run.stderr
    assert "Installing" not in first_run.stdout + first_run.stderr
    assert "5 of the seed's documents were new" in first_run.stdout
    assert "success: 5 of 5 items are in" in first_run.stdout
    assert run_id_in(first_run.stdout)
    assert re.search(r"dashboard http://127\.0\.0\.1:\d+/runs/flow-run/", first_run.stdout)
    wait_until(lambda: not processes_of(checkout))


@dataclass(frozen=True)
class Kept:
    """A run that leaves everything up, and what it has told until then."""

    process: "subprocess.Popen[str]"
    told: str


@pytest.fixture(scope="module")
def kept(first_run: subprocess.CompletedProcess[str], checkout: Path) -> Iterator[Kept]:
    """A second run; the last test of this file ends it."""
    assert first_run.returncode == 0, first_run.stderr
    with subprocess.Popen(
        ["./scripts/run", "--keep"],
        cwd=checkout,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        try:
            yield Kept(process, told_until(process, "until Ctrl-C"))
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(PATIENCE_SECONDS)


def test_a_second_run_reinstalls_nothing_and_keeps_everything_up(
    first_run: subprocess.CompletedProcess[str], kept: Kept, checkout: Path
) -> None:
    assert processes_of(checkout) != []
    run_ids = [run_id_in(first_run.stdout), run_id_in(kept.told)]
    assert outcomes_of(run_ids, kept.told) == [("success", "scripts/run")] * 2
    assert "Installing" not in kept.told
    assert "0 of the seed's documents were new" in kept.told
    assert mongodb_in(kept.told) == mongodb_in(first_run.stdout) or "is taken" in kept.told
    assert "success: 5 of 5 items are in" in kept.told


def test_what_the_settings_name_is_used_and_nothing_stands_in(kept: Kept, checkout: Path) -> None:
    uri = mongodb_in(kept.told)
    servers = {"MONGODB_URI": uri, "PREFECT_API_URL": f"{prefect_in(kept.told)}/api"}
    nobody = upsert_urls(f"http://127.0.0.1:{free_port()}")
    named = {**servers, **nobody, "MONGODB_DB": "elsewhere", "ADMIN_RETRY_MAX": "0"}
    without_token = run(checkout, "./scripts/run", **named)
    assert without_token.returncode == 2
    assert "ADMIN_SYNC_TOKEN is missing" in without_token.stderr
    assert "Traceback" not in without_token.stderr
    empty = run(checkout, "./scripts/run", **named, ADMIN_SYNC_TOKEN="token")
    assert empty.returncode == 1
    assert "MONGODB_DB names the database elsewhere" in empty.stdout
    assert "MongoDB  " not in empty.stdout
    assert "Stage 1 hub" not in empty.stdout
    assert "Prefect  " not in empty.stdout
    with MongoClient(uri) as client:
        source = client["elsewhere"].source_tenants
        source.insert_one({"id": "acme", "name": "Acme", "version": 1})
    failing = run(checkout, "./scripts/run", **named, ADMIN_SYNC_TOKEN="token")
    assert failing.returncode == 1
    assert "CONNECTION_ERROR" in failing.stdout


def test_ctrl_c_ends_what_was_kept_up(kept: Kept, checkout: Path) -> None:
    """The last test of this file: what it looks at is gone after it."""
    kept.process.send_signal(signal.SIGINT)
    assert kept.process.wait(PATIENCE_SECONDS) == 0
    wait_until(lambda: not processes_of(checkout))


def mongodb_in(told: str) -> str:
    """Return the URI of the MongoDB that a command has told of."""
    uri = re.search(r"mongodb://127\.0\.0\.1:\d+", told)
    assert uri, told
    return uri[0]


def prefect_in(told: str) -> str:
    """Return the URL of the Prefect server that a command has told of."""
    url = re.search(r"^Prefect +(http://127\.0\.0\.1:\d+)$", told, re.MULTILINE)
    assert url, told
    return url[1]


def outcomes_of(run_ids: list[ObjectId], told: str) -> list[tuple[str, str]]:
    """Return status and trigger of these runs, by the MongoDB that a command has told of."""
    with MongoClient[Document](mongodb_in(told)) as client:
        runs = client["identity_backoffice"].sync_runs.find({"_id": {"$in": run_ids}})
        return [(run["status"], run["trigger"]) for run in runs]


def told_until(process: subprocess.Popen[str], last: str) -> str:
    """Return what a process prints until it says so."""
    told = ""
    assert process.stdout is not None
    for line in process.stdout:
        told += line
        if last in line:
            return told
    pytest.fail(f"it ended by itself: {told}")
