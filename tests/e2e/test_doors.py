"""Every door that `./scripts/serve` opens, as an operator uses it."""

import json
import signal
import subprocess
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from bson import ObjectId
from prefect.client.schemas.objects import StateType
from prefect.exceptions import PrefectHTTPStatusError
from prefect.states import Cancelling

from tests.e2e.checkout import Served, processes_of, run
from tests.integration.world import PATIENCE_SECONDS, Document, http, wait_until

START = ("prefect", "deployment", "run", "admin-sync/full")


@pytest.fixture(autouse=True)
def _well_behaved_hub(served: Served) -> None:
    served.hub.misbehave()


def sync_and_watch(served: Served, *arguments: str) -> subprocess.CompletedProcess[str]:
    return served.command(*START, "--watch", *arguments)


def asked_of_prefect(served: Served, path: str, **body: Any) -> Any:
    with served.prefect() as client:
        return client.request("POST", path, json=body).json()


def artifacts_of(served: Served, flow_run_id: str) -> dict[str, Any]:
    """Data of a flow run's artifacts, by key."""
    artifacts = asked_of_prefect(
        served, "/artifacts/filter", flow_runs={"id": {"any_": [flow_run_id]}}
    )
    return {artifact["key"]: artifact["data"] for artifact in artifacts}


def whole_logs_of(served: Served, flow_run_id: str) -> list[str] | None:
    """The logs of a flow run, once they are there to the end."""
    logs = asked_of_prefect(
        served,
        "/logs/filter",
        logs={"flow_run_id": {"any_": [flow_run_id]}},
        sort="TIMESTAMP_ASC",
    )
    messages = [log["message"] for log in logs]
    return messages if any("Finished in state" in message for message in messages) else None


def test_the_command_line_starts_a_sync_and_tells_how_it_ended(served: Served) -> None:
    watched = sync_and_watch(served)
    assert watched.returncode == 0, watched.stdout + watched.stderr
    run = served.newest_run()
    assert run["status"] == "success"
    assert run["totals"] == {"total": 5, "success": 5, "failed": 0, "skipped": 0}
    assert (run["trigger"], run["flow_run_name"]) == ("manual", "all entities - manual")
    assert len(served.steps_of(run)) == 5


@pytest.fixture(scope="module")
def watched_failure(served: Served) -> tuple[subprocess.CompletedProcess[str], Document]:
    """A sync of which one item failed, from another folder and without settings, and its run."""
    served.hub.misbehave({"entity_type": "domain", "code": "NOT_FOUND", "message": "no such host"})
    command = str(served.checkout / "scripts" / "sync")
    return run(served.checkout.parent, command), served.newest_run()


def test_the_script_follows_the_deployment_of_what_is_served_and_tells_what_is_not_in(
    watched_failure: tuple[subprocess.CompletedProcess[str], Document],
) -> None:
    watched, run = watched_failure
    assert (watched.returncode, watched.stderr) == (1, "")
    assert (run["status"], run["trigger"]) == ("partial", "scripts/sync")
    assert [error["code"] for error in run["errors"]] == ["NOT_FOUND"]
    by_deployment = "The deployment admin-sync/full runs the sync, as flow run"
    assert f"{by_deployment} {run['flow_run_id']}." in watched.stdout
    assert "domain/pagos.semperaltius.edu.mx" in watched.stdout
    assert f"run_id    {run['_id']}\n" in watched.stdout
    assert f"/runs/flow-run/{run['flow_run_id']}\n" in watched.stdout


def test_one_stage_alone(served: Served) -> None:
    watched = sync_and_watch(served, "-p", 'entities=["domain"]', "-p", "trigger=after the import")
    assert watched.returncode == 0, watched.stdout + watched.stderr
    run = served.newest_run()
    assert [stage["entity_type"] for stage in run["stages"]] == ["domain"]
    assert [step["entity_type"] for step in served.steps_of(run)] == ["domain"]
    assert run["flow_run_name"] == "domain - after the import"


def test_wrong_parameters_are_refused_before_a_run_is_made(served: Served) -> None:
    before = asked_of_prefect(served, "/flow_runs/count")
    assert served.command(*START, "-p", 'entities=["tenants"]').returncode != 0
    deployment_id = served.deployment().id
    with served.prefect() as client:
        for wrong in (["tenants"], [], "tenant"):
            with pytest.raises(PrefectHTTPStatusError, match="409"):
                client.create_flow_run_from_deployment(
                    deployment_id, parameters={"entities": wrong}
                )
    assert asked_of_prefect(served, "/flow_runs/count") == before


def test_the_form_has_descriptions_and_a_choice(served: Served) -> None:
    parameters = served.deployment().parameter_openapi_schema["properties"]
    entities = parameters["entities"]
    assert entities["items"]["enum"] == ["tenant", "client", "subtenant", "domain", "branding"]
    assert "sync" in entities["description"]
    assert parameters["trigger"]["description"]


def test_two_syncs_never_overlap_and_the_second_waits_visibly(served: Served) -> None:
    served.hub.misbehave({"delay_ms": 1500})
    first, second = served.start("admin-sync/full"), served.start("admin-sync/changed")
    states_seen = set()

    def both_ended() -> bool:
        responses = [
            http.get(f"{served.dashboard_url}/api/flow_runs/{flow_run_id}").json()
            for flow_run_id in (first, second)
        ]
        states_seen.update(response["state"]["name"] for response in responses)
        return all(response["state"]["type"] == "COMPLETED" for response in responses)

    wait_until(both_ended, poll_seconds=0.5)
    assert "Waiting" in states_seen
    with served.database() as database:
        found = database.sync_runs.find({"flow_run_id": {"$in": [first, second]}})
        runs = list(found.sort({"started_at": 1}))
    assert [run["status"] for run in runs] == ["success", "success"]
    assert runs[0]["stages"][-1]["finished_at"] <= runs[1]["stages"][0]["started_at"]


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
    third = http.post(f"{served.api_url}/admin/sync/run")
    assert third.status_code == 202
    third_id = third.json()["run_id"]
    assert http.post(f"{served.api_url}/admin/sync/runs/{third_id}/cancel").status_code == 202
    served.run_until_ended(_id=ObjectId(third_id))


def test_a_run_that_is_cancelled_while_its_process_starts_sends_nothing(served: Served) -> None:
    started = http.post(f"{served.api_url}/admin/sync/run").json()["run_id"]
    address = f"{served.api_url}/admin/sync/runs/{started}"
    flow_run_id = UUID(http.get(address).json()["flow_run_id"])
    sent_before = len(served.hub.requests())
    with served.prefect() as prefect:
        wait_until(lambda: prefect.read_flow_run(flow_run_id).state_type is StateType.PENDING, 0.02)
        prefect.set_flow_run_state(flow_run_id, Cancelling())
        run = served.run_until_ended(_id=ObjectId(started))
        assert run["status"] == "cancelled"
        wait_until(lambda: prefect.read_flow_run(flow_run_id).state_type is StateType.CANCELLED)
        following = http.post(f"{served.api_url}/admin/sync/run", json={"entities": ["tenant"]})
        served.run_until_ended(_id=ObjectId(following.json()["run_id"]))
        assert prefect.read_flow_run(flow_run_id).state_type is StateType.CANCELLED
    assert http.get(address).json()["status"] == "cancelled"
    assert len(served.hub.requests()) == sent_before + 1


def test_a_run_leaves_progress_a_summary_and_its_failures(
    served: Served, watched_failure: tuple[subprocess.CompletedProcess[str], Document]
) -> None:
    _, run = watched_failure
    artifacts = wait_until(
        lambda: found if "failures" in (found := artifacts_of(served, run["flow_run_id"])) else None
    )
    stages = ["tenant", "client", "subtenant", "domain", "branding"]
    assert {key: artifacts[f"progress-{key}"] for key in stages} == dict.fromkeys(stages, 100.0)
    summary = json.loads(artifacts["summary"])
    assert [row["stage"] for row in summary] == [*stages, "all"]
    assert [row["failed"] for row in summary] == [0, 0, 0, 1, 0, 1]
    assert [row["success"] for row in summary] == [1, 1, 1, 0, 1, 4]
    (failure,) = json.loads(artifacts["failures"])
    (failed,) = [step for step in served.steps_of(run) if not step["ok"]]
    assert failure == {
        "entity type": "domain",
        "natural key": "pagos.semperaltius.edu.mx",
        "code": "NOT_FOUND",
        "message": "no such host",
        "attempts": 1,
        "request_id": failed["request_id"],
    }
    logs = wait_until(lambda: whole_logs_of(served, run["flow_run_id"]))
    for stage in stages:
        assert len([line for line in logs if line.startswith(f"{stage}: ")]) == 1
    (told,) = [line for line in logs if "pagos.semperaltius.edu.mx" in line]
    assert told == "domain pagos.semperaltius.edu.mx: NOT_FOUND: no such host"


def test_progress_is_shown_while_a_stage_runs(served: Served) -> None:
    extra = [{"id": f"extra-{n:02}", "name": "Extra", "version": 1} for n in range(24)]
    with served.database() as database:
        database.source_clients.insert_many([{**client, "redirect_uris": []} for client in extra])
    served.hub.misbehave({"entity_type": "client", "delay_ms": 900})
    try:
        flow_run_id = served.start()

        def progress_of_clients() -> float | None:
            progress = artifacts_of(served, flow_run_id).get("progress-client", 0)
            return progress if 0 < progress < 100 else None

        shown = wait_until(progress_of_clients, poll_seconds=0.5)
        assert 10 <= shown <= 99
        run = served.newest_run()
        assert run["flow_run_id"] == flow_run_id
        assert served.run_until_ended(_id=run["_id"])["status"] == "success"
    finally:
        with served.database() as database:
            database.source_clients.delete_many({"name": "Extra"})


def test_the_nightly_schedule_is_off_until_switched_on_and_then_stays_on(served: Served) -> None:
    (schedule,) = served.deployment().schedules
    assert schedule.active is False
    assert schedule.schedule.timezone == "America/Mexico_City"
    with served.prefect() as client:
        client.update_deployment_schedule(served.deployment().id, schedule.id, active=True)
    deployed = served.command("python", "-m", "deployments.deploy")
    assert deployed.returncode == 0, deployed.stderr
    deployment = served.deployment()
    (after,) = deployment.schedules
    assert after.active is True
    assert after.schedule == schedule.schedule
    with served.prefect() as client:
        client.update_deployment_schedule(deployment.id, after.id, active=False)


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
