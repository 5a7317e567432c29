"""However a run ends, its document says so: cancelled, terminated, or failed in our own code."""

import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from prefect.client.orchestration import get_client
from prefect.settings import PREFECT_CLIENT_MAX_RETRIES, temporary_settings
from prefect.states import Failed

from flows.admin_sync import admin_sync
from flows.state_mirror import mirror_run
from scripts import sync_now
from tasks.settings import read_mongo_settings
from tasks.trail.audit_trail import audit_trail
from tasks.trail.runs import RunOptions
from tasks.trail.stages import RunStatus
from tasks.trail.steps import Step
from tests.integration.served import process
from tests.integration.world import PATIENCE_SECONDS, REPOSITORY, World, prefect_at, wait_until
from tests.trail_documents import begin


def the_run(world: World) -> Any:
    return world.database.sync_runs.find_one()


def assert_totals_equal_the_steps(world: World) -> None:
    steps = list(world.database.sync_steps.find())
    totals = the_run(world)["totals"]
    assert totals["total"] == len(steps)
    assert totals["success"] == sum(step["ok"] for step in steps)


def test_a_terminated_process(world: World, tmp_path: Path) -> None:
    world.add_tenants(60)
    world.hub.misbehave({"delay_ms": 1000})
    with process(world, "scripts.sync_now", log_path=tmp_path / "sync.log") as sync:
        wait_until(lambda: len(world.hub.requests()) >= 5)
        sync.send_signal(signal.SIGTERM)
        assert sync.wait(PATIENCE_SECONDS) != 0
    sent = len(world.hub.requests())
    assert sent < 60
    assert the_run(world)["status"] == "crashed"
    assert_totals_equal_the_steps(world)
    confirmed = world.database.sync_steps.count_documents({"ok": True})
    assert confirmed == world.hub.stats()["stored"]["tenant"]


def test_a_trail_that_takes_no_steps_fails_the_run_and_stops_it(world: World) -> None:
    world.add_tenants(150)
    world.database.create_collection("sync_steps", validator={"never": {"$exists": True}})
    run = world.sync()
    assert run.state.is_failed()
    assert run.document["status"] == "failed"
    assert "BulkWriteError" in run.document["message"]
    assert run.steps == []


def test_a_source_that_can_not_be_read_fails_the_run(world: World) -> None:
    world.add_seed()
    world.database.source_clients.drop()
    broken = [{"$project": {"id": {"$divide": [1, 0]}}}]
    world.database.source_tenants.rename("tenants_table")
    world.database.command("create", "source_tenants", viewOn="tenants_table", pipeline=broken)
    run = world.sync()
    assert run.state.is_failed()
    assert run.document["status"] == "failed"
    assert "OperationFailure" in run.document["message"]
    assert world.hub.requests() == []


def test_mongodb_away_is_told_in_one_sentence(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    away = "mongodb://user:marked@127.0.0.1:9/?serverSelectionTimeoutMS=300"
    monkeypatch.setenv("MONGODB_URI", away)
    started = time.monotonic()
    state = world.state_of_sync()
    assert time.monotonic() - started < 25, "the patience that the URI asks for was not heeded"
    assert state.is_failed()
    assert "MongoDB does not answer" in state.message
    assert "MONGODB_URI" in state.message
    assert "marked" not in state.message
    assert world.hub.requests() == []


@pytest.fixture
def _as_command(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `sync_now.main()` run in this process, which sets variables of the environment."""
    assert world.database_name
    monkeypatch.setattr("sys.argv", ["sync_now"])
    for variable in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(variable, "")


@pytest.mark.usefixtures("_as_command")
def test_mongodb_away_ends_the_command_with_one_sentence(
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("MONGODB_URI", "mongodb://127.0.0.1:9/?serverSelectionTimeoutMS=300")
    assert sync_now.main() == 2
    told = capfd.readouterr().err
    assert "MongoDB does not answer" in told
    assert "Traceback" not in told + caplog.text


@pytest.mark.usefixtures("_as_command")
def test_prefect_away_is_told_in_one_sentence(
    world: World, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    world.add_seed()
    with prefect_at("http://127.0.0.1:9/api"), temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 0}):
        assert sync_now.main() == 2
    told = capfd.readouterr().err
    assert "PREFECT_API_URL" in told
    assert "Traceback" not in told + caplog.text


def test_on_the_ephemeral_prefect_api(
    world: World, prefect_home_in: Callable[[Path], Path], tmp_path: Path
) -> None:
    world.add_seed()
    entities = ["tenant", "client"]
    environment = {**os.environ, **world.environment}
    del environment["PREFECT_API_URL"]
    environment |= {
        "PREFECT_SERVER_ALLOW_EPHEMERAL_MODE": "true",
        "PREFECT_HOME": str(prefect_home_in(tmp_path / "prefect")),
        "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": str(PATIENCE_SECONDS),
    }
    script = (
        "import asyncio; from flows.admin_sync import admin_sync; "
        f"asyncio.run(admin_sync(entities={entities}))"
    )
    subprocess.run(
        [sys.executable, "-c", script],
        cwd=REPOSITORY,
        env=environment,
        check=True,
        capture_output=True,
    )
    assert the_run(world)["status"] == "success"
    assert the_run(world)["totals"]["success"] == len(entities)


def test_a_late_older_event_never_overwrites_a_terminal_status(world: World) -> None:
    world.add_seed()
    run = world.sync()
    with get_client(sync_client=True) as api:
        flow_run = api.read_flow_run(uuid.UUID(run.document["flow_run_id"]))
    mirror_run(admin_sync, flow_run, Failed(timestamp=run.document["started_at"]))
    assert the_run(world)["status"] == "success"


def test_what_several_processes_record_after_the_end_is_counted(world: World) -> None:
    trail = audit_trail(read_mongo_settings())
    options = RunOptions("a test", ("tenant",))
    run_id = trail.runs.open("a flow run", "its name", options)
    attempt = begin(trail.ownership, run_id, options)
    trail.counting.end_run(run_id, RunStatus.CRASHED, "killed", datetime.now(UTC))

    def end_a_batch(number: int) -> None:
        step = Step(
            run_id=run_id,
            flow_run_id="a flow run",
            run_attempt=attempt.number,
            entity_type="tenant",
            source_id=number,
            natural_key=str(number),
            version=1,
        )
        trail.buffer.record(step)
        trail.buffer.flush()
        trail.counting.recount(run_id, "tenant")

    with ThreadPoolExecutor(16) as batches:
        for ended in range(40, 161, 40):
            list(batches.map(end_a_batch, range(ended - 40, ended)))
            (run,) = world.database.sync_runs.find()
            (stage,) = run["stages"]
            assert run["totals"] == {"total": ended, "success": ended, "failed": 0, "skipped": 0}
            assert (stage["total"], stage["success"]) == (ended, ended)
