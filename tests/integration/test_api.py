"""The REST API over real HTTP: its answers, its refusals, and what it leaves in Prefect."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import copy_context
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from threading import Thread
from typing import Any
from uuid import uuid4

import httpx
import pytest
import uvicorn
from bson import ObjectId
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import (
    GlobalConcurrencyLimitCreate,
    WorkPoolCreate,
    WorkPoolUpdate,
)
from prefect.client.schemas.filters import DeploymentFilter, DeploymentFilterName
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.client.schemas.responses import DeploymentResponse
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.states import Cancelled, Cancelling, Completed, Pending, Running, Scheduled, State
from pymongo import MongoClient
from pymongo.database import Database

from deployments.api.__main__ import main
from deployments.api.app import create_app
from deployments.api.models import RUN_RESPONSE, STEPS_RESPONSE
from deployments.api.run_view import RunView
from deployments.deploy import deploy
from scripts.local.hub import upsert_urls
from scripts.local.process import LOCALHOST, free_port, running
from tasks.entities import ENTITY_NAMES
from tasks.limit import limit_name
from tasks.settings import read_api_settings, read_mongo_settings, read_settings
from tasks.trail.steps import StepRecord
from tests.integration.world import (
    PATIENCE_SECONDS,
    REPOSITORY,
    Document,
    http,
    set_all,
    wait_until,
)
from tests.item_documents import hub_of, item_document, run_document
from tests.trail_documents import PERMANENT

TOKEN = "api-test-token-81bd"
DATABASE = "api_test"
BEARER = {"Authorization": f"Bearer {TOKEN}"}
SYNC_SETTINGS = {"ADMIN_SYNC_TOKEN": "token", **upsert_urls("http://127.0.0.1:9")}


@dataclass(frozen=True)
class Api:
    """A running API, the trail it shows and the Prefect server it speaks to."""

    base_url: str
    database: Database[Document]
    prefect: SyncPrefectClient

    def get(self, path: str, **params: Any) -> httpx.Response:
        return http.get(f"{self.base_url}{path}", params=params, headers=BEARER)

    def post(self, path: str, **arguments: Any) -> httpx.Response:
        return http.post(f"{self.base_url}{path}", headers=BEARER, **arguments)

    def flow_runs(self) -> list[FlowRun]:
        """Runs of its deployments in Prefect."""
        ours = DeploymentFilter(name=DeploymentFilterName(any_=["full", "changed"]))
        return self.prefect.read_flow_runs(deployment_filter=ours)


@contextmanager
def serving(log_path: Path, **variables: str) -> Iterator[str]:
    """Run the API as a process of its own; yields its base URL."""
    port = free_port()
    base_url = f"http://127.0.0.1:{port}/api"
    with running(
        [sys.executable, "-m", "deployments.api"],
        name="The REST API",
        ready=lambda: _listens(f"{base_url}/health"),
        env={**os.environ, **variables, "ADMIN_API_PORT": str(port)},
        log_path=log_path,
        timeout_seconds=PATIENCE_SECONDS,
        cwd=REPOSITORY,
    ):
        yield base_url


def _listens(url: str) -> bool:
    try:
        http.get(url)
    except httpx.TransportError:
        return False
    return True


@contextmanager
def serving_here(**variables: str) -> Iterator[str]:
    """Serve the API in the process of the tests; yields its base URL."""
    port = free_port()
    with (
        pytest.MonkeyPatch.context() as environment,
        temporary_settings({PREFECT_API_URL: variables["PREFECT_API_URL"]}),
    ):
        set_all(environment, variables)
        app = create_app(read_api_settings(), read_mongo_settings())
        server = uvicorn.Server(uvicorn.Config(app, host=LOCALHOST, port=port, log_config=None))
        thread = Thread(target=copy_context().run, args=[server.run])
        thread.start()
        try:
            wait_until(lambda: server.started or not thread.is_alive())
            yield f"http://{LOCALHOST}:{port}/api"
        finally:
            server.should_exit = True
            thread.join()


def variables_of(
    mongodb_uri: str, prefect_api_url: str, database: str, environment: str = ""
) -> dict[str, str]:
    """Return the settings of an API."""
    return {
        "MONGODB_URI": mongodb_uri,
        "MONGODB_DB": database,
        "PREFECT_API_URL": prefect_api_url,
        "ADMIN_ENVIRONMENT": environment,
        "ADMIN_API_TOKEN": TOKEN,
        **SYNC_SETTINGS,
    }


DEPLOYMENTS = ("admin-sync/full", "admin-sync/changed", "audit-sweep/audit-sweep")


@pytest.fixture(scope="module")
def prefect(prefect_api_url: str) -> Iterator[SyncPrefectClient]:
    """A Prefect server with the deployments: a sync that waits for a worker is one under way.

    Others use the server, too: after these tests they are gone.
    """
    with get_client(sync_client=True) as client:
        # Prefect's command line would take a process for it.
        client.create_work_pool(WorkPoolCreate(name="backoffice", type="process"))
        with pytest.MonkeyPatch.context() as environment:
            environment.setenv("PREFECT_API_URL", prefect_api_url)
            environment.setenv("ADMIN_ENVIRONMENT", "")
            deploy()
        yield client
        for name in DEPLOYMENTS:
            client.delete_deployment(client.read_deployment_by_name(name).id)
        client.delete_work_pool("backoffice")


@pytest.fixture(scope="module")
def api_process(
    mongodb_uri: str,
    prefect_api_url: str,
    prefect: SyncPrefectClient,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Api]:
    variables = variables_of(mongodb_uri, prefect_api_url, DATABASE)
    log_path = tmp_path_factory.mktemp("api") / "api.log"
    with (
        MongoClient[Document](mongodb_uri, tz_aware=True) as client,
        serving(log_path, **variables) as base_url,
    ):
        yield Api(base_url, client[DATABASE], prefect)
        client.drop_database(DATABASE)


@pytest.fixture
def api(api_process: Api) -> Api:
    """The API with an empty trail, and no syncs in Prefect."""
    # First those: the API follows what it has started, and puts its end on record.
    for flow_run in api_process.flow_runs():
        api_process.prefect.delete_flow_run(flow_run.id)
    for name in ("sync_runs", "sync_steps", "sync_items"):
        api_process.database[name].delete_many({})
    return api_process


def error_of(response: httpx.Response) -> tuple[int, str]:
    assert response.headers["Content-Type"] == "application/json"
    body = response.json()
    assert set(body) == {"error"}
    assert set(body["error"]) == {"code", "message", "details"}
    return response.status_code, body["error"]["code"]


STARTED = datetime(2024, 1, 1, tzinfo=UTC)


def add_run(api: Api, steps: int = 0, **fields: Any) -> ObjectId:
    """Put a run of two stages into the trail, every third of its steps failed."""
    counts = {"total": steps, "success": 0, "failed": 0, "skipped": 0}
    run_id = ObjectId()
    run = {
        "_id": run_id,
        "flow_run_id": str(uuid4()),
        "flow_run_name": "all entities - test",
        "status": "partial",
        "mode": "full",
        "trigger": "test",
        "started_at": STARTED,
        "finished_at": STARTED + timedelta(seconds=10),
        "totals": counts,
        "stages": [],
        "errors": [],
        "message": "said",
    }
    api.database.sync_runs.insert_one({**run, **fields})
    if steps:
        api.database.sync_steps.insert_many([_step(run_id, n) for n in range(steps)])
    return run_id


def _step(run_id: ObjectId, number: int) -> Document:
    is_in = number % 3 != 0
    error = None if is_in else {"code": "NOT_FOUND", "message": "no", "class": "permanent"}
    at_the_same_moment = STARTED + timedelta(seconds=number // 7)
    return {
        "run_id": run_id,
        "entity_type": "tenant" if number % 2 else "client",
        "natural_key": f"key-{number:03}",
        "source_id": number,
        "version": 1,
        "request_id": "0" * 32,
        "ok": is_in,
        "state": "Completed" if is_in else "Failed",
        "http_status": 200,
        "sync_id": None,
        "error": error,
        "attempts": 1,
        "duration_ms": 1.5,
        "flow_run_id": "f",
        "task_run_id": "t",
        "created_at": at_the_same_moment,
        "updated_at": at_the_same_moment,
    }


def test_a_sync_is_handed_to_prefect_and_answered_at_once(api: Api) -> None:
    before = time.monotonic()
    response = api.post("/admin/sync/run")
    assert time.monotonic() - before < 30
    assert response.status_code == 202
    body = response.json()
    assert set(body) == {"run_id", "status", "state", "message"}
    (document,) = api.database.sync_runs.find()
    assert str(document["_id"]) == body["run_id"]
    assert (body["status"], body["state"]) == ("running", "Scheduled")
    assert document["status"] == "pending"
    assert document["trigger"] == "REST API"
    flow_run = api.prefect.read_flow_run(document["flow_run_id"])
    deployment = api.prefect.read_deployment_by_name("admin-sync/full")
    assert flow_run.deployment_id == deployment.id
    assert flow_run.name == document["flow_run_name"] == "all entities - REST API"
    assert flow_run.parameters["trigger"] == "REST API"
    assert set(flow_run.tags) == {"mode:full", f"database:{DATABASE}"}
    (listed,) = api.get("/admin/sync/runs").json()["items"]
    assert (listed["status"], listed["state"]) == ("running", "Scheduled")
    assert listed["dashboard"].endswith(f"/runs/flow-run/{flow_run.id}")
    api.prefect.set_flow_run_state(flow_run.id, Pending(), force=True)
    shown = api.get(f"/admin/sync/runs/{body['run_id']}").json()
    assert (shown["status"], shown["state"]) == ("running", "Pending")


@pytest.mark.parametrize("content", ["", "{}", "null", " null\n"])
@pytest.mark.parametrize(
    "content_type", [None, "application/json", "application/x-www-form-urlencoded", "text/plain"]
)
def test_nothing_in_particular_is_a_full_run(
    api: Api, content: str, content_type: str | None
) -> None:
    named = {"Content-Type": content_type} if content_type else {}
    response = http.post(
        f"{api.base_url}/admin/sync/run", headers={**BEARER, **named}, content=content
    )
    assert response.status_code == 202
    (document,) = api.database.sync_runs.find()
    assert (document["mode"], document["parameters"]["entities"]) == ("full", ENTITY_NAMES)


def test_the_trigger_can_be_told(api: Api) -> None:
    asked = {"entities": ["tenant"], "trigger": "after the import"}
    assert api.post("/admin/sync/run", json=asked).status_code == 202
    (document,) = api.database.sync_runs.find()
    assert document["trigger"] == "after the import"
    assert api.post("/admin/sync/run", json={"trigger": "x" * 201}).status_code == 422


def test_a_subset_in_sync_order(api: Api) -> None:
    response = api.post("/admin/sync/run", json={"entities": ["domain", "tenant"]})
    assert response.status_code == 202
    (document,) = api.database.sync_runs.find()
    assert document["parameters"]["entities"] == ["tenant", "domain"]
    flow_run = api.prefect.read_flow_run(document["flow_run_id"])
    assert flow_run.parameters["entities"] == ["tenant", "domain"]
    assert flow_run.name == "tenant, domain - REST API"


def test_what_has_changed_is_another_deployment_of_the_same_flow(api: Api) -> None:
    asked = {"mode": "changed", "dry_run": True, "disable_gone": True}
    response = api.post("/admin/sync/run", json=asked)
    assert response.status_code == 202
    (document,) = api.database.sync_runs.find()
    assert (document["mode"], document["dry_run"]) == ("changed", True)
    assert document["parameters"]["disable_gone"] is True
    flow_run = api.prefect.read_flow_run(document["flow_run_id"])
    changed = api.prefect.read_deployment_by_name("admin-sync/changed")
    assert flow_run.deployment_id == changed.id
    assert (flow_run.parameters["mode"], flow_run.parameters["dry_run"]) == ("changed", True)
    assert flow_run.name == "dry run: changed: all entities - REST API"
    shown = api.get(f"/admin/sync/runs/{response.json()['run_id']}").json()
    assert (shown["mode"], shown["dry_run"]) == ("changed", True)
    (schedule,) = changed.schedules
    assert (schedule.slug, schedule.active) == ("every-15-minutes", False)


def test_a_second_sync_is_turned_away_with_the_first_ones_run_id(api: Api) -> None:
    first = api.post("/admin/sync/run").json()
    second = api.post("/admin/sync/run")
    assert error_of(second) == (409, "SYNC_RUNNING")
    assert second.json()["error"]["details"] == {"run_id": first["run_id"]}
    assert api.database.sync_runs.count_documents({}) == 1


def test_of_four_at_once_at_two_processes_one_is_started(
    api: Api, mongodb_uri: str, prefect_api_url: str
) -> None:
    modes = ["full", "changed"] * 2
    variables = variables_of(mongodb_uri, prefect_api_url, DATABASE)
    with serving_here(**variables) as base_url, ThreadPoolExecutor(4) as callers:
        another = Api(base_url, api.database, api.prefect)
        assert another.get("/admin/sync/runs").is_success  # connects it to MongoDB
        responses = list(
            callers.map(
                lambda api, mode: api.post("/admin/sync/run", json={"mode": mode}),
                [api, api, another, another],
                modes,
            )
        )
        assert sorted(response.status_code for response in responses) == [202] + [409] * 3
        (document,) = api.database.sync_runs.find()
    (flow_run,) = api.flow_runs()
    assert document["flow_run_id"] == str(flow_run.id)
    for response, mode in zip(responses, modes, strict=True):
        if response.status_code == 202:
            assert response.json()["run_id"] == str(document["_id"])
            assert mode == document["mode"]
        else:
            told = response.json()["error"]
            assert told["details"] == {"run_id": str(document["_id"])}


@pytest.fixture
def changed_in_staging(prefect: SyncPrefectClient) -> Iterator[DeploymentResponse]:
    """A deployment of another environment, as `deployments.deploy` makes it."""
    pool = prefect.create_work_pool(WorkPoolCreate(name="backoffice-staging", type="process"))
    here = prefect.read_deployment_by_name("admin-sync/changed")
    deployment_id = prefect.create_deployment(
        here.flow_id,
        name="changed-staging",
        entrypoint=here.entrypoint,
        parameter_openapi_schema=here.parameter_openapi_schema,
        work_pool_name=pool.name,
    )
    yield prefect.read_deployment(deployment_id)
    prefect.delete_deployment(deployment_id)
    prefect.delete_work_pool(pool.name)


def test_two_environments_see_nothing_of_each_other(
    api: Api, mongodb_uri: str, prefect_api_url: str, changed_in_staging: DeploymentResponse
) -> None:
    database = api.database.client[f"{DATABASE}_staging"]
    variables = variables_of(mongodb_uri, prefect_api_url, database.name, "staging")
    with serving_here(**variables) as base_url:
        staging = Api(base_url, database, api.prefect)
        assert api.post("/admin/sync/run").status_code == 202
        started = staging.post("/admin/sync/run", json={"mode": "changed"})
        assert started.status_code == 202
        (document,) = database.sync_runs.find()
        second = staging.post("/admin/sync/run")
        database.client.drop_database(database)
    assert error_of(second) == (409, "SYNC_RUNNING")
    assert second.json()["error"]["details"] == {"run_id": started.json()["run_id"]}
    flow_run = api.prefect.read_flow_run(document["flow_run_id"])
    assert flow_run.deployment_id == changed_in_staging.id
    assert flow_run.work_pool_name == "backoffice-staging"
    assert api.database.sync_runs.count_documents({}) == 1


def test_a_run_of_the_trail_alone_is_under_way_as_long_as_its_process_speaks(api: Api) -> None:
    unfinished = {"status": "running", "finished_at": None, "mirrored_at": None, "attempt": 1}
    run_id = add_run(api, active=True, alive_at=datetime.now(UTC), **unfinished)
    refused = api.post("/admin/sync/run")
    assert error_of(refused) == (409, "SYNC_RUNNING")
    assert refused.json()["error"]["details"] == {"run_id": str(run_id)}
    silent_since = datetime.now(UTC) - timedelta(seconds=50)
    api.database.sync_runs.update_one({"_id": run_id}, {"$set": {"alive_at": silent_since}})
    assert api.post("/admin/sync/run").status_code == 202


def test_a_run_that_another_door_started_is_told_of_too(api: Api) -> None:
    deployment = api.prefect.read_deployment_by_name("admin-sync/full")
    flow_run = api.prefect.create_flow_run_from_deployment(deployment.id, name="by hand")
    refused = api.post("/admin/sync/run")
    assert error_of(refused) == (409, "SYNC_RUNNING")
    assert "by hand" in refused.json()["error"]["message"]
    (document,) = api.database.sync_runs.find()
    assert document["flow_run_id"] == str(flow_run.id)
    assert refused.json()["error"]["details"]["run_id"] == str(document["_id"])


def test_a_run_that_is_scheduled_for_later_is_not_under_way(api: Api) -> None:
    deployment = api.prefect.read_deployment_by_name("admin-sync/full")
    (schedule,) = api.prefect.read_deployment_schedules(deployment.id)
    api.prefect.update_deployment_schedule(deployment.id, schedule.id, active=True)
    # Prefect looks for new runs of such deployments soon that have just changed.
    api.prefect.resume_deployment(deployment.id)
    try:
        wait_until(lambda: _has_scheduled_run(api))
        assert api.post("/admin/sync/run").status_code == 202
    finally:
        api.prefect.update_deployment_schedule(deployment.id, schedule.id, active=False)


def _has_scheduled_run(api: Api) -> bool:
    flow_runs = api.flow_runs()
    return any(r.auto_scheduled and r.state and r.state.is_scheduled() for r in flow_runs)


def test_a_run_that_has_not_begun_is_cancelled_at_once(api: Api) -> None:
    run_id = api.post("/admin/sync/run").json()["run_id"]
    cancelled = api.post(f"/admin/sync/runs/{run_id}/cancel")
    assert cancelled.status_code == 202
    assert cancelled.json() == {
        "run_id": run_id,
        "status": "cancelled",
        "state": "Cancelled",
        "message": "The sync is cancelled",
    }
    (document,) = api.database.sync_runs.find()
    assert document["status"] == "cancelled"
    assert document["finished_at"] is not None
    assert api.prefect.read_flow_run(document["flow_run_id"]).state_type is StateType.CANCELLED
    assert api.post("/admin/sync/run").status_code == 202


@pytest.mark.parametrize("state", [Scheduled(), Pending()])
def test_a_run_that_is_cancelled_elsewhere_before_it_begins_ends_in_the_trail(
    api: Api, state: State[Any]
) -> None:
    api.post("/admin/sync/run")
    (document,) = api.database.sync_runs.find()
    for following in (state, Cancelling(), Cancelled(message="killed while it started")):
        api.prefect.set_flow_run_state(document["flow_run_id"], following)
    ended = {"status": "cancelled", "finished_at": {"$ne": None}}
    run = wait_until(lambda: api.database.sync_runs.find_one(ended))
    assert run["_id"] == document["_id"]
    assert api.post("/admin/sync/run").status_code == 202


def test_a_run_that_was_cancelled_before_it_was_on_record_is_no_obstacle(api: Api) -> None:
    """As where an API was killed after it had asked Prefect for a run."""
    run_id = api.post("/admin/sync/run").json()["run_id"]
    (document,) = api.database.sync_runs.find()
    api.database.sync_runs.delete_many({})
    api.prefect.set_flow_run_state(document["flow_run_id"], Cancelled())
    started = api.post("/admin/sync/run")
    assert started.status_code == 202
    assert started.json()["run_id"] != run_id
    by_flow_run = {run["flow_run_id"]: run["status"] for run in api.database.sync_runs.find()}
    assert by_flow_run.pop(document["flow_run_id"]) == "cancelled"
    assert list(by_flow_run.values()) == ["pending"]


def test_a_run_whose_flow_run_was_deleted_is_cancelled_in_the_trail(api: Api) -> None:
    run_id = api.post("/admin/sync/run").json()["run_id"]
    (document,) = api.database.sync_runs.find()
    api.prefect.delete_flow_run(document["flow_run_id"])
    cancelled = api.post(f"/admin/sync/runs/{run_id}/cancel")
    assert cancelled.status_code == 202
    assert cancelled.json()["status"] == "cancelled"
    assert error_of(api.post(f"/admin/sync/runs/{run_id}/cancel")) == (409, "RUN_FINISHED")
    assert api.post("/admin/sync/run").status_code == 202


def test_a_run_that_goes_on_is_cancelling(api: Api) -> None:
    run_id = api.post("/admin/sync/run").json()["run_id"]
    (document,) = api.database.sync_runs.find()
    api.prefect.set_flow_run_state(document["flow_run_id"], Running(), force=True)
    cancelled = api.post(f"/admin/sync/runs/{run_id}/cancel")
    assert cancelled.status_code == 202
    assert cancelled.json() == {
        "run_id": run_id,
        "status": "running",
        "state": "Cancelling",
        "message": "The sync is being cancelled",
    }
    assert api.prefect.read_flow_run(document["flow_run_id"]).state_type is StateType.CANCELLING
    assert api.post(f"/admin/sync/runs/{run_id}/cancel").status_code == 202


def test_a_run_that_has_ended_is_not_cancelled(api: Api) -> None:
    run_id = api.post("/admin/sync/run").json()["run_id"]
    (document,) = api.database.sync_runs.find()
    api.prefect.set_flow_run_state(document["flow_run_id"], Completed(), force=True)
    refused = api.post(f"/admin/sync/runs/{run_id}/cancel")
    assert error_of(refused) == (409, "RUN_FINISHED")
    assert api.prefect.read_flow_run(document["flow_run_id"]).state_type is StateType.COMPLETED


def test_a_run_that_prefect_does_not_know_is_not_cancelled(api: Api) -> None:
    refused = api.post(f"/admin/sync/runs/{add_run(api)}/cancel")
    assert error_of(refused) == (409, "RUN_FINISHED")


@pytest.mark.parametrize("run_id", ["0" * 24, "x"])
def test_what_is_no_run_is_not_cancelled(api: Api, run_id: str) -> None:
    assert error_of(api.post(f"/admin/sync/runs/{run_id}/cancel")) == (404, "NOT_FOUND")


@pytest.mark.parametrize(
    "body",
    [{"entities": []}, {"entities": ["tenants"]}, {"entities": "tenant"}, {"mode": 1}, [], 7],
)
def test_a_wrong_body_starts_nothing(api: Api, body: Any) -> None:
    runs_before = len(api.flow_runs())
    assert error_of(api.post("/admin/sync/run", json=body)) == (422, "VALIDATION_ERROR")
    assert len(api.flow_runs()) == runs_before
    assert api.database.sync_runs.count_documents({}) == 0


def test_a_body_that_is_no_json(api: Api) -> None:
    response = http.post(
        f"{api.base_url}/admin/sync/run",
        content=b"{",
        headers={"Content-Type": "application/json", **BEARER},
    )
    assert error_of(response) == (400, "BAD_REQUEST")


def test_a_body_that_is_too_long(api: Api) -> None:
    long_bodies: list[Any] = [b"x" * 1_000_000, (b"x" * 1_000 for _ in range(1_000))]
    for body in long_bodies:
        refused = api.post("/admin/sync/run", content=body)
        assert error_of(refused) == (413, "BODY_TOO_LARGE")


def test_a_run_as_the_seed_shows_it(api: Api) -> None:
    totals = {"total": 2, "success": 1, "failed": 1, "skipped": 0}
    error = {"entity_type": "tenant", "natural_key": "a", "code": "NOT_FOUND", "message": "no"}
    run_id = add_run(api, totals=totals, errors=[error])
    body = api.get(f"/admin/sync/runs/{run_id}").json()
    assert body["id"] == str(run_id)
    assert body["status"] == "partial"
    assert body["started_at"] == "2024-01-01T00:00:00.000Z"
    assert body["finished_at"] == "2024-01-01T00:00:10.000Z"
    assert body["totals"] == totals
    assert body["errors"] == [{**error, "source_id": None}]


def test_runs_come_newest_first_in_pages(api: Api) -> None:
    ids = [str(add_run(api, started_at=STARTED + timedelta(minutes=n // 2))) for n in range(5)]
    pages = [api.get("/admin/sync/runs", page=page, limit=2).json() for page in (1, 2, 3, 4)]
    assert [page["total"] for page in pages] == [5, 5, 5, 5]
    assert [len(page["items"]) for page in pages] == [2, 2, 1, 0]
    assert [run["id"] for page in pages for run in page["items"]] == ids[::-1]


def test_steps_come_in_pages_in_a_stable_order(api: Api) -> None:
    run_id = add_run(api, steps=120)
    add_run(api, steps=3)
    whole = api.get(f"/admin/sync/runs/{run_id}/steps", limit=500).json()
    assert (whole["total"], len(whole["items"])) == (120, 120)
    default = api.get(f"/admin/sync/runs/{run_id}/steps").json()
    assert (default["page"], default["limit"], len(default["items"])) == (1, 50, 50)
    pages = [
        api.get(f"/admin/sync/runs/{run_id}/steps", page=page, limit=13).json()["items"]
        for page in range(1, 11)
    ]
    assert [step["id"] for page in pages for step in page] == [s["id"] for s in whole["items"]]
    assert [s["natural_key"] for s in whole["items"]] == [f"key-{n:03}" for n in range(120)]
    assert whole["next"] is None
    page, seen = default, list(default["items"])
    while page["next"]:
        page = api.get(f"/admin/sync/runs/{run_id}/steps", after=page["next"]).json()
        seen += page["items"]
    assert seen == whole["items"]


def test_steps_are_filtered(api: Api) -> None:
    run_id = add_run(api, steps=12)
    path = f"/admin/sync/runs/{run_id}/steps"
    failed = api.get(path, ok="false").json()
    assert [step["source_id"] for step in failed["items"]] == ["0", "3", "6", "9"]
    assert failed["items"][0]["error"] == {
        "code": "NOT_FOUND",
        "message": "no",
        "class": "permanent",
    }
    failed_tenants = api.get(path, ok="false", entity_type="tenant").json()
    assert [step["source_id"] for step in failed_tenants["items"]] == ["3", "9"]
    assert failed_tenants["total"] == 2
    assert api.get(path, ok="true").json()["total"] == 8


def test_the_stages_of_a_run_tell_what_is_superseded_and_gone(api: Api) -> None:
    counts = {"total": 3, "success": 2, "skipped": 1, "superseded": 1, "gone": 4}
    stage = {"entity_type": "tenant", "status": "success", "hub": hub_of("tenant"), **counts}
    run_id = add_run(api, stages=[stage])
    (told,) = api.get(f"/admin/sync/runs/{run_id}").json()["stages"]
    assert told.items() >= counts.items()
    assert "hub" not in told


def test_items_that_are_not_in_and_the_story_of_one(api: Api) -> None:
    run = run_document("tenant", "domain", started_at=STARTED + timedelta(seconds=1))
    api.database.sync_runs.insert_one(run)
    api.database.sync_items.insert_many(
        [
            item_document("key-001"),
            item_document("a/b", error=PERMANENT, not_in_since=STARTED, attempts=2),
            item_document("gone", "domain", gone_since=STARTED),
            item_document("elsewhere", host="old.example", not_in_since=STARTED),
        ]
    )
    add_run(api, steps=3)
    add_run(api, steps=2)

    (not_in,) = api.get("/admin/sync/items", **{"in": "false"}).json()["items"]
    assert (not_in["natural_key"], not_in["attempts"]) == ("a/b", 2)
    assert not_in["last"]["error"]["code"] == PERMANENT.code
    still = api.get(f"/admin/sync/runs/{run['_id']}/items", change="still-failing").json()
    assert still["items"] == [not_in]
    (gone,) = api.get("/admin/sync/items", gone="true").json()["items"]
    assert (gone["natural_key"], gone["gone_since"]) == ("gone", "2024-01-01T00:00:00.000Z")
    for path in ("tenant/a/b", "tenant/a%2Fb"):
        told = api.get(f"/admin/sync/items/{path}").json()
        assert (told["items"], told["history"]["total"]) == ([not_in], 0)
    story = api.get("/admin/sync/items/tenant/key-001", limit=1).json()
    assert (len(story["items"]), story["history"]["total"]) == (1, 2)
    assert len(story["history"]["items"]) == 1


def test_an_item_that_does_not_exist(api: Api) -> None:
    assert error_of(api.get("/admin/sync/items/tenant/nobody")) == (404, "NOT_FOUND")
    assert error_of(api.get("/admin/sync/items/tenants/a")) == (422, "VALIDATION_ERROR")


@pytest.mark.parametrize("path", ["", "/steps"])
def test_a_run_that_does_not_exist(api: Api, path: str) -> None:
    add_run(api, steps=1)
    assert error_of(api.get(f"/admin/sync/runs/{ObjectId()}{path}")) == (404, "NOT_FOUND")


@pytest.mark.parametrize("run_id", ["x", "0" * 23, "0" * 25, "[$ne]", '{"$gt":""}', "%00"])
@pytest.mark.parametrize("path", ["", "/steps"])
def test_what_is_no_run_id(api: Api, run_id: str, path: str) -> None:
    add_run(api, steps=1)
    response = api.get(f"/admin/sync/runs/{run_id}{path}")
    assert error_of(response) == (404, "NOT_FOUND")


def test_a_run_is_named_by_its_flow_run_too(api: Api) -> None:
    run_id = add_run(api, steps=2)
    run = api.get(f"/admin/sync/runs/{run_id}").json()
    by_flow_run = f"/admin/sync/runs/{run['flow_run_id']}"
    assert api.get(by_flow_run).json() == run
    assert api.get(f"{by_flow_run}/steps").json()["total"] == 2
    cancelled = api.post(f"{by_flow_run}/cancel")
    assert error_of(cancelled) == (409, "RUN_FINISHED")


@pytest.mark.parametrize(
    "wrong",
    [
        {"page": "0"},
        {"page": "-1"},
        {"page": "x"},
        {"page": "9" * 30},
        {"limit": "0"},
        {"limit": "501"},
        {"ok": "maybe"},
        {"entity_type": "tenants"},
        {"entity_type": '{"$ne": null}'},
        {"after": "0" * 24},
        {"after": f"{'9' * 14}-{'0' * 24}"},
        {"after": f"1-{'0' * 24}\n"},
    ],
)
def test_wrong_queries(api: Api, wrong: dict[str, str]) -> None:
    run_id = add_run(api, steps=1)
    response = api.get(f"/admin/sync/runs/{run_id}/steps", **wrong)
    assert error_of(response) == (422, "VALIDATION_ERROR")
    assert f"query.{next(iter(wrong))}" in response.json()["error"]["details"]


def test_other_paths_and_methods(api: Api) -> None:
    assert error_of(api.get("/admin/sync")) == (404, "NOT_FOUND")
    assert error_of(api.get("/admin/sync/run")) == (405, "METHOD_NOT_ALLOWED")


@pytest.mark.parametrize(
    "path",
    [
        "/admin/sync/runs",
        f"/admin/sync/runs/{'0' * 24}",
        "/admin/sync/items",
        "/admin/sync/items/tenant/a",
        "/docs",
        "/openapi.json",
        "/nowhere",
    ],
)
@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": "Bearer wrong"},
        {"Authorization": TOKEN},
        {"Authorization": f"Basic {TOKEN}"},
    ],
)
def test_the_token_is_asked_for(api: Api, path: str, headers: dict[str, str]) -> None:
    response = http.get(f"{api.base_url}{path}", headers=headers)
    assert error_of(response) == (401, "UNAUTHORIZED")
    assert response.headers["WWW-Authenticate"] == "Bearer"


def test_without_the_token_nothing_is_started(api: Api) -> None:
    assert http.post(f"{api.base_url}/admin/sync/run").status_code == 401
    assert api.database.sync_runs.count_documents({}) == 0


def health_of(api: Api) -> httpx.Response:
    return http.get(f"{api.base_url}/health")


WORKER = "worker-of-the-test"


@pytest.fixture
def worker(api: Api) -> Iterator[None]:
    """A worker that spoke just now, for the last time in ten minutes."""
    api.prefect.send_worker_heartbeat("backoffice", WORKER, heartbeat_interval_seconds=600)
    yield
    place = {"work_pool_name": "backoffice", "name": WORKER}
    api.prefect.request("DELETE", "/work_pools/{work_pool_name}/workers/{name}", path_params=place)


@pytest.mark.usefixtures("worker")
def test_health_asks_for_no_token_and_tells_the_parts_apart(api: Api) -> None:
    # Each part has three seconds to answer, in which those of a busy machine may not.
    response = wait_until(lambda: answered if (answered := health_of(api)).is_success else None)
    assert response.status_code == 200
    body = response.json()
    assert body["ok"] is True
    assert {part: body[part]["ok"] for part in ("mongodb", "prefect", "hub")} == {
        "mongodb": True,
        "prefect": True,
        "hub": True,
    }
    assert body["prefect"]["message"] == "Prefect answers, and a worker is up"
    assert body["held_up_by"] == []
    assert http.head(f"{api.base_url}/health").content == b""


@pytest.mark.usefixtures("worker")
def test_health_tells_a_limit_that_is_switched_off_and_not_which(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_all(monkeypatch, {**SYNC_SETTINGS, "MONGODB_URI": "mongodb://127.0.0.1:9"})
    name = limit_name(read_settings())
    off = GlobalConcurrencyLimitCreate(name=name, limit=3, active=False)
    api.prefect.create_global_concurrency_limit(off)
    (told,) = wait_until(lambda: health_of(api).json()["held_up_by"])
    api.prefect.delete_global_concurrency_limit_by_name(name)
    assert "concurrency limit of the requests to Stage 1 is switched off" in told


def waits_for(api: Api, obstacle: str) -> bool:
    """Whether health is red because of that, and the start of a sync says that it waits for it."""
    health = health_of(api)
    assert health.status_code == 503
    assert health.json()["ok"] is False
    is_told = obstacle in health.json()["prefect"]["message"]
    return is_told and f"The sync waits. {obstacle}" in told_at_start(api)


def told_at_start(api: Api) -> str:
    started = api.post("/admin/sync/run")
    assert started.status_code == 202
    body: dict[str, str] = started.json()
    assert api.post(f"/admin/sync/runs/{body['run_id']}/cancel").status_code == 202
    return body["message"]


def test_without_a_worker_health_is_red_and_a_sync_waits(api: Api) -> None:
    wait_until(lambda: waits_for(api, "No worker of the work pool backoffice is up"))


@pytest.mark.usefixtures("worker")
def test_with_a_paused_work_pool_or_queue_health_is_red_and_a_sync_waits(api: Api) -> None:
    wait_until(lambda: told_at_start(api) == "Sync started")
    api.prefect.update_work_pool("backoffice", WorkPoolUpdate(is_paused=True))
    try:
        wait_until(lambda: waits_for(api, "The work pool backoffice is paused"))
    finally:
        api.prefect.update_work_pool("backoffice", WorkPoolUpdate(is_paused=False))
    pause_queue(api, is_paused=True)
    try:
        wait_until(lambda: waits_for(api, "The work queue default of the work pool backoffice"))
    finally:
        pause_queue(api, is_paused=False)


def pause_queue(api: Api, *, is_paused: bool) -> None:
    queue = "/work_pools/backoffice/queues/default"
    api.prefect.request("PATCH", queue, json={"is_paused": is_paused}).raise_for_status()


def test_the_openapi_page_needs_nothing_from_elsewhere(api: Api) -> None:
    page = api.get("/docs")
    assert page.status_code == 200
    assert "://" not in page.text.replace(api.base_url, "")
    script = http.get(f"{api.base_url}/docs/static/swagger-ui-bundle.js", headers=BEARER)
    assert len(script.content) > 100_000


def test_the_openapi_document_has_an_example_for_every_answer(api: Api) -> None:
    paths = api.get("/openapi.json").json()["paths"]
    operations = [operation for path in paths.values() for operation in path.values()]
    answers = [
        answer["content"]["application/json"]
        for operation in operations
        for status, answer in operation["responses"].items()
        if operation["tags"] == ["sync"] and status != "202"
    ]
    assert len(answers) >= 20
    assert all("example" in answer for answer in answers)


def test_the_examples_are_records_as_the_api_gives_them() -> None:
    step = STEPS_RESPONSE[200]["content"]["application/json"]["example"]["items"][0]
    told = StepRecord.model_validate(step | {"_id": step["id"]})
    assert told.model_dump(mode="json", by_alias=True) == step
    run = RUN_RESPONSE[200]["content"]["application/json"]["example"]
    told_of_run = RunView.model_validate(run | {"_id": run["id"]})
    assert told_of_run.model_dump(mode="json", by_alias=True) == run


def test_what_is_away_is_told_apart_in_a_plain_sentence(tmp_path: Path) -> None:
    away = {
        "MONGODB_URI": "mongodb://user:marked@127.0.0.1:9/?serverSelectionTimeoutMS=300",
        "PREFECT_API_URL": "http://127.0.0.1:9/api",
        "ADMIN_CONCURRENCY": "many",
    }
    with serving(tmp_path / "api.log", **away) as base_url:
        health = http.get(f"{base_url}/health")
        runs = http.get(f"{base_url}/admin/sync/runs")
        started = http.post(f"{base_url}/admin/sync/run")
    assert health.status_code == 503
    parts = health.json()
    assert parts["ok"] is False
    assert "MONGODB_URI" in parts["mongodb"]["message"]
    assert "PREFECT_API_URL" in parts["prefect"]["message"]
    assert "ADMIN_SYNC_TOKEN is missing" in parts["hub"]["message"]
    assert "ADMIN_CONCURRENCY" in parts["hub"]["message"]
    for response in (runs, started):
        assert error_of(response) == (503, "UNAVAILABLE")
        assert "MongoDB does not answer" in response.json()["error"]["message"]
    assert "marked" not in health.text + runs.text + started.text
    assert "marked" not in (tmp_path / "api.log").read_text()


def test_prefect_away_starts_nothing(mongodb_uri: str) -> None:
    variables = variables_of(mongodb_uri, "http://127.0.0.1:9/api", "api_without_prefect")
    with serving_here(**variables) as base_url, MongoClient(mongodb_uri) as client:
        started = http.post(f"{base_url}/admin/sync/run", headers=BEARER)
        assert error_of(started) == (503, "UNAVAILABLE")
        assert "Prefect does not answer" in started.json()["error"]["message"]
        assert client["api_without_prefect"].sync_runs.count_documents({}) == 0
        client.drop_database("api_without_prefect")


def test_a_missing_deployment_is_told(mongodb_uri: str, prefect_api_url: str) -> None:
    variables = variables_of(mongodb_uri, prefect_api_url, "api_without_deployment", "new")
    with serving_here(**variables) as base_url:
        started = http.post(f"{base_url}/admin/sync/run", headers=BEARER)
    assert error_of(started) == (503, "UNAVAILABLE")
    assert "python -m deployments.deploy" in started.json()["error"]["message"]


SOUND = {"MONGODB_URI": "mongodb://127.0.0.1:9", "PREFECT_API_URL": "http://127.0.0.1:9/api"}


@pytest.mark.parametrize(
    "variables",
    [
        {"ADMIN_API_HOST": "0.0.0.0", "ADMIN_API_PORT": "http", "ADMIN_API_TOKEN": "two words"},
        {"MONGODB_URI": ""},
    ],
)
def test_wrong_settings_stop_the_api_at_its_start(
    variables: dict[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["api"])
    set_all(monkeypatch, {"NO_PROXY": "", "no_proxy": "", **SOUND, **variables})
    assert main() == 2
    told = capsys.readouterr().err
    for variable in variables:
        assert variable in told
    assert "two words" not in told


def test_without_a_prefect_server_the_api_ends_at_its_start() -> None:
    api = subprocess.run(
        [sys.executable, "-m", "deployments.api"],
        cwd=REPOSITORY,
        env={**os.environ, **SOUND, "PREFECT_API_URL": ""},
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
        check=False,
    )
    assert api.returncode == 2
    assert "PREFECT_API_URL" in api.stderr
    assert "Traceback" not in api.stderr


NULL_IS_NO_BODY = """
[[operations]]
include-operation-id = "start_sync"
checks.negative_data_rejection.enabled = false
"""
"""Of a union with null, generators send a body that is left out as if it were a value."""


@pytest.mark.usefixtures("worker")
def test_fuzzed_from_its_own_openapi_document(api: Api, tmp_path: Path) -> None:
    add_run(api, steps=5, stages=run_document("tenant", "client")["stages"])
    api.database.sync_items.insert_one(item_document("key-001"))
    (tmp_path / "schemathesis.toml").write_text(NULL_IS_NO_BODY)
    fuzzer = subprocess.run(
        [
            *("schemathesis", "run", f"{api.base_url}/openapi.json"),
            *("--header", f"Authorization: Bearer {TOKEN}"),
            *("--max-examples", "10", "--seed", "1", "--workers", "1"),
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert fuzzer.returncode == 0, fuzzer.stdout[-6000:]
