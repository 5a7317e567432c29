"""Every door that `./scripts/serve` opens, as an operator uses it."""

import json
import signal
import subprocess
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from bson import ObjectId
from prefect.client.schemas.objects import StateType
from prefect.exceptions import PrefectHTTPStatusError
from prefect.states import Cancelling

from tests.e2e.checkout import FailedSync, Served, processes_of
from tests.integration.world import PATIENCE_SECONDS, Document, http, wait_until

START = ("prefect", "deployment", "run", "admin-sync/full")


@pytest.fixture(autouse=True)
def _well_behaved_hub(served: Served) -> None:
    served.hub.misbehave()


@dataclass(frozen=True)
class CancelledRun:
    """A run that was cancelled while its process started."""

    address: str
    flow_run_id: UUID
    run: Document
    sent_before: int


@pytest.fixture(scope="module")
def cancelled_run(served: Served) -> CancelledRun:
    served.hub.misbehave()
    started = http.post(f"{served.api_url}/admin/sync/run").json()["run_id"]
    address = f"{served.api_url}/admin/sync/runs/{started}"
    flow_run_id = UUID(http.get(address).json()["flow_run_id"])
    sent_before = len(served.hub.requests())
    with served.prefect() as prefect:
        wait_until(lambda: prefect.read_flow_run(flow_run_id).state_type is StateType.PENDING, 0.02)
        prefect.set_flow_run_state(flow_run_id, Cancelling())
        run = served.run_until_ended(_id=ObjectId(started))
        wait_until(lambda: prefect.read_flow_run(flow_run_id).state_type is StateType.CANCELLED)
    return CancelledRun(address, flow_run_id, run, sent_before)


@dataclass(frozen=True)
class WatchedSync:
    """A sync that the command line has started."""

    command: subprocess.CompletedProcess[str]
    run: Document
    sent: int
    """How many requests there were since the run before it was asked for."""


@pytest.fixture(scope="module")
def watched_sync(served: Served, cancelled_run: CancelledRun) -> WatchedSync:
    """The sync that follows the one that was cancelled."""
    command = served.command(*START, "--watch")
    sent = len(served.hub.requests()) - cancelled_run.sent_before
    return WatchedSync(command, served.newest_run(), sent)


def test_the_command_line_starts_a_sync_and_tells_how_it_ended(
    served: Served, watched_sync: WatchedSync
) -> None:
    command, run = watched_sync.command, watched_sync.run
    assert command.returncode == 0, command.stdout + command.stderr
    assert run["status"] == "success"
    assert run["totals"] == {"total": 5, "success": 5, "failed": 0, "skipped": 0}
    assert (run["trigger"], run["flow_run_name"]) == ("manual", "all entities - manual")
    assert len(served.steps_of(run)) == 5


def test_a_run_that_is_cancelled_while_its_process_starts_sends_nothing(
    served: Served, cancelled_run: CancelledRun, watched_sync: WatchedSync
) -> None:
    assert cancelled_run.run["status"] == "cancelled"
    with served.prefect() as prefect:
        state = prefect.read_flow_run(cancelled_run.flow_run_id).state_type
    assert state is StateType.CANCELLED, "it is that after the next run, too"
    assert http.get(cancelled_run.address).json()["status"] == "cancelled"
    assert watched_sync.sent == 5


def test_the_script_follows_the_deployment_of_what_is_served_and_tells_what_is_not_in(
    failed_sync: FailedSync,
) -> None:
    command, run = failed_sync.command, failed_sync.run
    assert (command.returncode, command.stderr) == (1, "")
    assert (run["status"], run["trigger"]) == ("partial", "scripts/sync")
    assert [error["code"] for error in run["errors"]] == ["NOT_FOUND"]
    by_deployment = "The deployment admin-sync/full runs the sync, as flow run"
    assert f"{by_deployment} {run['flow_run_id']}." in command.stdout
    assert "domain/pagos.semperaltius.edu.mx" in command.stdout
    assert f"run_id    {run['_id']}\n" in command.stdout
    assert f"/runs/flow-run/{run['flow_run_id']}\n" in command.stdout


def test_wrong_parameters_are_refused_before_a_run_is_made(served: Served) -> None:
    before = served.asked_of_prefect("/flow_runs/count")
    assert served.command(*START, "-p", 'entities=["tenants"]').returncode != 0
    deployment_id = served.deployment().id
    with served.prefect() as client:
        for wrong in (["tenants"], [], "tenant"):
            with pytest.raises(PrefectHTTPStatusError, match="409"):
                client.create_flow_run_from_deployment(
                    deployment_id, parameters={"entities": wrong}
                )
    assert served.asked_of_prefect("/flow_runs/count") == before


def test_the_form_has_descriptions_and_a_choice(served: Served) -> None:
    parameters = served.deployment().parameter_openapi_schema["properties"]
    entities = parameters["entities"]
    assert entities["items"]["enum"] == ["tenant", "client", "subtenant", "domain", "branding"]
    assert "sync" in entities["description"]
    assert parameters["trigger"]["description"]


@dataclass(frozen=True)
class TwoSyncs:
    """A sync that was long under way when the command line started another one, of one stage."""

    first: Document
    progress: float
    """How far the first one's clients were, by Prefect."""
    waiting: set[str]
    """What waited then, by Prefect: ids of flow runs."""
    command: subprocess.CompletedProcess[str]
    second: Document


@pytest.fixture(scope="module")
def two_syncs(served: Served) -> TwoSyncs:
    extra = [{"id": f"extra-{n:02}", "name": "Extra", "version": 1} for n in range(24)]
    with served.database() as database:
        database.source_clients.insert_many([{**client, "redirect_uris": []} for client in extra])
    served.hub.misbehave({"entity_type": "client", "delay_ms": 6000})
    try:
        return overlapping(served)
    finally:
        with served.database() as database:
            database.source_clients.delete_many({"name": "Extra"})


def overlapping(served: Served) -> TwoSyncs:
    """Let a second sync begin in the middle of the first, which ends once the second waits."""
    flow_run_id = served.start("admin-sync/changed")
    wait_until(lambda: served.newest_run()["flow_run_id"] == flow_run_id)
    wait_until(lambda: served.newest_run()["status"] == "running")

    def waiting() -> set[str]:
        is_waiting = {"state": {"name": {"any_": ["Waiting"]}}}
        found = served.asked_of_prefect("/flow_runs/filter", flow_runs=is_waiting)
        return {flow_run["id"] for flow_run in found}

    def progress_of_clients() -> float | None:
        progress = served.artifacts_of(flow_run_id).get("progress-client", 0)
        return progress if 10 <= progress < 100 else None

    with ThreadPoolExecutor(1) as shell:
        one_stage = ("-p", 'entities=["domain"]', "-p", "trigger=after the import")
        watching = shell.submit(served.command, *START, "--watch", *one_stage)
        waited = wait_until(waiting, poll_seconds=1)
        progress = wait_until(progress_of_clients, poll_seconds=0.5)
        served.hub.misbehave()
        command = watching.result()
    first = served.run_until_ended(flow_run_id=flow_run_id)
    return TwoSyncs(first, progress, waited, command, served.newest_run())


def test_one_stage_alone(served: Served, two_syncs: TwoSyncs) -> None:
    command, run = two_syncs.command, two_syncs.second
    assert command.returncode == 0, command.stdout + command.stderr
    assert [stage["entity_type"] for stage in run["stages"]] == ["domain"]
    assert [step["entity_type"] for step in served.steps_of(run)] == ["domain"]
    assert run["flow_run_name"] == "domain - after the import"


def test_two_syncs_never_overlap_and_the_second_waits_visibly(two_syncs: TwoSyncs) -> None:
    first, second = two_syncs.first, two_syncs.second
    assert two_syncs.waiting == {second["flow_run_id"]}
    assert [run["status"] for run in (first, second)] == ["success", "success"]
    assert first["stages"][-1]["finished_at"] <= second["stages"][0]["started_at"]


def test_progress_is_shown_while_a_stage_runs(two_syncs: TwoSyncs) -> None:
    assert 10 <= two_syncs.progress <= 99
    assert two_syncs.first["status"] == "success"


def test_the_rest_api_from_start_to_steps(served: Served) -> None:
    served.hub.misbehave({"entity_type": "tenant", "delay_ms": 1500})
    started = http.post(f"{served.api_url}/admin/sync/run")
    assert started.status_code == 202
    run_id = started.json()["run_id"]
    second = http.post(f"{served.api_url}/admin/sync/run")
    assert second.status_code == 409
    assert second.json()["error"]["details"]["run_id"] == run_id

    def ended() -> dict[str, Any] | None:
        run: dict[str, Any] = http.get(f"{served.api_url}/admin/sync/runs/{run_id}").json()
        return run if run["finished_at"] else None

    run = wait_until(ended, poll_seconds=0.5)
    assert run["status"] == "success"
    assert run["totals"]["success"] == 5
    assert run["errors"] == []
    in_prefect = http.get(f"{served.dashboard_url}/api/flow_runs/{run['flow_run_id']}").json()
    began, began_running = (
        datetime.fromisoformat(moment) for moment in (run["started_at"], in_prefect["start_time"])
    )
    off = abs(began - began_running)
    assert off < timedelta(seconds=1), "the time in the queue counts as running"
    steps = http.get(f"{served.api_url}/admin/sync/runs/{run_id}/steps").json()
    assert steps["total"] == 5
    assert steps["items"][0]["entity_type"] == "tenant"
    listed = http.get(f"{served.api_url}/admin/sync/runs", params={"limit": 1}).json()
    assert listed["items"][0]["id"] == run_id
    third = http.post(f"{served.api_url}/admin/sync/run", json={"entities": ["tenant"]})
    assert third.status_code == 202
    third_id = third.json()["run_id"]
    assert http.post(f"{served.api_url}/admin/sync/runs/{third_id}/cancel").status_code == 202
    served.run_until_ended(_id=ObjectId(third_id))


def test_a_run_leaves_progress_a_summary_and_its_failures(failed_sync: FailedSync) -> None:
    artifacts, logs = failed_sync.artifacts, failed_sync.logs
    stages = ["tenant", "client", "subtenant", "domain", "branding"]
    assert {key: artifacts[f"progress-{key}"] for key in stages} == dict.fromkeys(stages, 100.0)
    summary = json.loads(artifacts["summary"])
    assert [row["stage"] for row in summary] == [*stages, "all"]
    assert [row["failed"] for row in summary] == [0, 0, 0, 1, 0, 1]
    assert [row["success"] for row in summary] == [1, 1, 1, 0, 1, 4]
    (failure,) = json.loads(artifacts["failures"])
    assert failure == {
        "entity type": "domain",
        "natural key": "pagos.semperaltius.edu.mx",
        "code": "NOT_FOUND",
        "message": "the client does not exist",
        "attempts": 1,
        "request_id": failed_sync.failed_step["request_id"],
    }
    for stage in stages:
        assert len([line for line in logs if line.startswith(f"{stage}: ")]) == 1
    (told,) = [line for line in logs if "pagos.semperaltius.edu.mx" in line]
    assert told == "domain pagos.semperaltius.edu.mx: NOT_FOUND: the client does not exist"


def test_the_nightly_schedule_is_off(served: Served) -> None:
    (schedule,) = served.deployment().schedules
    assert schedule.active is False
    assert schedule.schedule.timezone == "America/Mexico_City"


def test_a_port_that_is_taken_is_told(served: Served) -> None:
    port = served.dashboard_url.rpartition(":")[2]
    sound = {"MONGODB_URI": served.mongodb_uri}
    second = served.command("./scripts/serve", "--prefect-port", port, PREFECT_API_URL="", **sound)
    assert second.returncode == 1
    assert f"can't listen on 127.0.0.1:{port}" in second.stderr
    assert "Traceback" not in second.stderr


def test_ctrl_c_in_the_middle_of_a_sync_ends_all_that_was_started(served: Served) -> None:
    """The last test of these doors: they are closed after it."""
    served.hub.misbehave({"delay_ms": 3000})
    started = http.post(f"{served.api_url}/admin/sync/run")
    assert started.status_code == 202
    wait_until(lambda: served.hub.stats()["in_flight"])
    served.process.send_signal(signal.SIGINT)
    assert served.process.wait(PATIENCE_SECONDS) == 0
    assert not (served.checkout / ".local" / "serve.json").exists()
    wait_until(lambda: not processes_of(served.checkout))
