"""`./scripts/run` as a new user runs it, in a fresh checkout."""

import re
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from bson import ObjectId
from pymongo import MongoClient

from scripts.local.hub import upsert_urls
from scripts.local.mongod import local_mongod
from scripts.local.prefect import local_prefect_server
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


def test_a_second_run_reinstalls_nothing_and_keeps_everything_up_until_interrupted(
    first_run: subprocess.CompletedProcess[str], checkout: Path
) -> None:
    with subprocess.Popen(
        ["./scripts/run", "--keep"],
        cwd=checkout,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as kept:
        try:
            told = told_until(kept, "until Ctrl-C")
            assert processes_of(checkout) != []
            run_ids = [run_id_in(first_run.stdout), run_id_in(told)]
            assert outcomes_of(run_ids, told) == [("success", "scripts/run")] * 2
        finally:
            kept.send_signal(signal.SIGINT)
            assert kept.wait(PATIENCE_SECONDS) == 0
    assert "Installing" not in told
    assert "0 of the seed's documents were new" in told
    assert mongodb_in(told) == mongodb_in(first_run.stdout) or "is taken" in told
    assert "success: 5 of 5 items are in" in told
    wait_until(lambda: not processes_of(checkout))


@pytest.mark.usefixtures("first_run")
def test_what_the_settings_name_is_used_and_nothing_stands_in(
    checkout: Path, prefect_home_in: Callable[[Path], Path], tmp_path: Path
) -> None:
    nobody = upsert_urls(f"http://127.0.0.1:{free_port()}")
    with (
        local_mongod(tmp_path / "mongodb") as uri,
        local_prefect_server(prefect_home_in(tmp_path / "prefect")) as prefect_api_url,
    ):
        servers = {"MONGODB_URI": uri, "PREFECT_API_URL": prefect_api_url}
        named = {**servers, **nobody, "ADMIN_RETRY_MAX": "0"}
        without_token = run(checkout, "./scripts/run", **named)
        assert without_token.returncode == 2
        assert "ADMIN_SYNC_TOKEN is missing" in without_token.stderr
        assert "Traceback" not in without_token.stderr
        empty = run(checkout, "./scripts/run", **named, ADMIN_SYNC_TOKEN="token")
        assert empty.returncode == 1
        assert "MONGODB_DB names the database identity_backoffice" in empty.stdout
        assert "MongoDB  " not in empty.stdout
        assert "Stage 1 hub" not in empty.stdout
        assert "Prefect  " not in empty.stdout
        with MongoClient(uri) as client:
            source = client["identity_backoffice"].source_tenants
            source.insert_one({"id": "acme", "name": "Acme", "version": 1})
        failing = run(checkout, "./scripts/run", **named, ADMIN_SYNC_TOKEN="token")
    assert failing.returncode == 1
    assert "CONNECTION_ERROR" in failing.stdout


def mongodb_in(told: str) -> str:
    """Return the URI of the MongoDB that a command has told of."""
    uri = re.search(r"mongodb://127\.0\.0\.1:\d+", told)
    assert uri, told
    return uri[0]


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
