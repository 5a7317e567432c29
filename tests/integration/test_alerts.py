"""Alerts and the end of dead runs, by automations of a real Prefect server."""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from prefect.automations import Automation, RunDeployment
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.events import Event
from prefect.exceptions import ObjectNotFound
from prefect.settings import Settings
from prefect.states import Completed, Crashed, Late, Running, State, Suspended

from deployments.automations import ALERT_BLOCK, ALERTS, DIED, died_automation, put_automations
from flows.admin_sync import admin_sync, sync_stage
from scripts.local.prefect import local_prefect_server
from tasks.settings import AlertSettings
from tests.integration.world import REPOSITORY, Hub, World, prefect_at, wait_until

MARKED_PATH = "/hooks/marked-9d27"
SILENCE = timedelta(seconds=30)
"""Prefect takes ten seconds too, in which a busy machine may not come to tell that a run lives."""


@dataclass
class Receiver:
    """A webhook receiver on this machine."""

    port: int
    bodies: list[Any] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}{MARKED_PATH}"

    @property
    def texts(self) -> list[str]:
        return [body["text"] for body in self.bodies]

    def about(self, name: str) -> list[str]:
        return [text for text in self.texts if name in text]


@contextmanager
def receiving() -> Iterator[Receiver]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            assert self.headers["Content-Type"] == "application/json"
            assert self.path == MARKED_PATH
            body = self.rfile.read(int(self.headers["Content-Length"]))
            receiver.bodies.append(json.loads(body))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        receiver = Receiver(server.server_address[1])
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield receiver
        server.shutdown()


def deploy(api_url: str, **variables: str) -> None:
    subprocess.run(
        [sys.executable, "-m", "deployments.deploy"],
        cwd=REPOSITORY,
        env={**os.environ, "PREFECT_API_URL": api_url, **variables},
        check=True,
        capture_output=True,
    )


@pytest.fixture(scope="module")
def receiver() -> Iterator[Receiver]:
    with receiving() as receiver:
        yield receiver


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("prefect-of-alerts")


@pytest.fixture(scope="module")
def deployed(
    receiver: Receiver, home: Path, prefect_home_in: Callable[[Path], Path]
) -> Iterator[str]:
    """A Prefect server of its own: its alerts must not be those of other tests."""
    with local_prefect_server(prefect_home_in(home)) as url:
        deploy(url, ADMIN_ALERT_WEBHOOK_URL=receiver.url)
        with prefect_at(url):
            yield url


@pytest.fixture
def api(deployed: str) -> Iterator[SyncPrefectClient]:
    assert deployed
    with get_client(sync_client=True) as client:
        yield client


@pytest.fixture
def world(
    deployed: str, hub: Hub, mongodb_uri: str, monkeypatch: pytest.MonkeyPatch
) -> Iterator[World]:
    world = World(hub, mongodb_uri, deployed)
    for variable, value in world.environment.items():
        monkeypatch.setenv(variable, value)
    yield world
    world.drop()


def a_run(api: SyncPrefectClient, name: str, state: State[Any] | None = None) -> FlowRun:
    """Create a run of `admin-sync/full` as a door does, which no worker will pick up."""
    deployment = api.read_deployment_by_name("admin-sync/full")
    flow_run = api.create_flow_run_from_deployment(deployment.id, name=name)
    if state is not None:
        api.set_flow_run_state(flow_run.id, state)
    return flow_run


def test_each_bad_ending_is_one_alert(
    world: World, api: SyncPrefectClient, receiver: Receiver, deployed: str
) -> None:
    world.add_tenants(3)
    assert world.sync(entities=["tenant"]).state.is_completed()
    world.hub.misbehave({"key": "tenant-0001", "code": "NOT_FOUND"})
    partial = world.sync(entities=["tenant"])
    world.hub.misbehave({"code": "NOT_FOUND"})
    failed = world.sync(entities=["tenant"])
    world.hub.misbehave({"status": 401})
    stopped = world.sync(entities=["tenant"])
    crashed = a_run(api, "it crashed", Crashed(message='killed by <"somebody">\n& co.'))
    late = a_run(api, "it is late", Late(scheduled_time=datetime.now(UTC)))

    # One alert may overtake another.
    wait_until(lambda: len(receiver.texts) >= 5)
    dashboard = deployed.removesuffix("/api")
    name = "tenant - manual"
    syncs = [
        f"admin-sync is {run.state.name}: {name}\n{run.state.message}\n"
        f"{dashboard}/runs/flow-run/{run.document['flow_run_id']}"
        for run in (partial, failed, stopped)
    ]
    assert [run.state.name for run in (partial, failed, stopped)] == [
        "Partial",
        "Failed",
        "Stopped",
    ]
    assert sorted(receiver.texts) == sorted(
        [
            *syncs,
            'admin-sync is Crashed: it crashed\nkilled by <"somebody">\n& co.\n'
            f"{dashboard}/runs/flow-run/{crashed.id}",
            f"admin-sync is Late: it is late\n{dashboard}/runs/flow-run/{late.id}",
        ]
    )


def test_the_webhooks_address_is_a_secret_in_prefect(
    api: SyncPrefectClient, receiver: Receiver, home: Path
) -> None:
    a_run(api, "one more alert", Crashed())
    wait_until(lambda: receiver.about("one more alert"))
    (alerts,) = api.read_automations_by_name(ALERTS)
    assert MARKED_PATH not in alerts.model_dump_json()
    for include_secrets in (False, True):
        block = api.read_block_document_by_name(ALERT_BLOCK, "webhook", include_secrets)
        assert (block.data["url"] == receiver.url) is include_secrets
    written = [path for path in home.rglob("*") if path.is_file()]
    assert {"prefect.db", "server.log"} <= {path.name for path in written}
    assert [path for path in written if MARKED_PATH.encode() in path.read_bytes()] == []


@pytest.fixture
def died_soon(api: SyncPrefectClient) -> Iterator[Automation]:
    """The automation for dead runs, with a short patience."""
    automation = died_automation(None, SILENCE)
    automation.name = "died soon"
    automation.create()
    yield automation
    api.delete_automation(automation.id)


def beat(api: SyncPrefectClient, flow_run: FlowRun, flow_name: str = admin_sync.name) -> None:
    """Say that a run lives, as the process that it is in does."""
    heartbeat = Event(
        event="prefect.flow-run.heartbeat",
        resource={
            "prefect.resource.id": f"prefect.flow-run.{flow_run.id}",
            "prefect.resource.name": flow_run.name,
        },
        related=[
            {
                "prefect.resource.id": f"prefect.flow.{flow_run.flow_id}",
                "prefect.resource.role": "flow",
                "prefect.resource.name": flow_name,
            }
        ],
    )
    response = api.request("POST", "/events", json=[heartbeat.model_dump(mode="json")])
    response.raise_for_status()


def state_type(api: SyncPrefectClient, flow_run_id: UUID) -> StateType | None:
    return api.read_flow_run(flow_run_id).state_type


def firings(api: SyncPrefectClient, flow_run_id: UUID) -> list[Any]:
    """Return what became of the automation's attempts to change the state of a run."""
    wanted = {
        "event": {
            "name": ["prefect.automation.action.failed", "prefect.automation.action.executed"]
        },
        "any_resource": {"id": [f"prefect.flow-run.{flow_run_id}"]},
    }
    answer = api.request("POST", "/events/filter", json={"filter": wanted}).json()
    return [event["payload"] for event in answer["events"]]


def test_only_what_is_silent_and_has_not_ended_is_crashed(
    world: World, api: SyncPrefectClient, died_soon: Automation, receiver: Receiver
) -> None:
    assert died_soon.trigger.within == SILENCE
    world.add_seed()
    run = world.sync()
    finished = api.read_flow_run(UUID(run.document["flow_run_id"]))
    dead, alive = (a_run(api, name, Running()) for name in ("it died", "it lives"))
    suspended = a_run(api, "it is suspended", Running())
    dead_stage = api.create_flow_run(sync_stage, name="its stage died", state=Running())
    beat(api, finished)
    beat(api, dead)
    beat(api, dead_stage, sync_stage.name)
    beat(api, suspended)
    api.set_flow_run_state(suspended.id, Suspended(), force=True)

    def all_is_told() -> bool:
        beat(api, alive)
        time.sleep(2)
        crashed = {state_type(api, silent.id) for silent in (dead, dead_stage)}
        return crashed == {StateType.CRASHED} and bool(firings(api, finished.id))

    wait_until(all_is_told)
    assert state_type(api, alive.id) is StateType.RUNNING
    assert state_type(api, suspended.id) is StateType.PAUSED
    assert state_type(api, finished.id) is StateType.COMPLETED
    assert "already in terminal state COMPLETED" in json.dumps(firings(api, finished.id))
    (document,) = world.database.sync_runs.find()
    assert document["status"] == "success"

    wait_until(lambda: receiver.about("it died"))
    (alert,) = receiver.about("it died")
    assert "is Crashed: it died\nNo heartbeat for 30 seconds" in alert
    assert not receiver.about("its stage died")

    for unfinished in (alive, suspended):
        api.set_flow_run_state(unfinished.id, Completed(), force=True)


def test_a_sweep_that_is_deployed_follows_a_crash(api: SyncPrefectClient) -> None:
    flow_id = api.create_flow_from_name("audit-sweep")
    sweep_id = api.create_deployment(flow_id, "audit-sweep")
    put_automations(api, AlertSettings())
    (died,) = api.read_automations_by_name(DIED)
    (sweep,) = [action for action in died.actions if isinstance(action, RunDeployment)]
    assert sweep.deployment_id == sweep_id


def test_deploying_again_leaves_one_of_each_as_it_was(
    api: SyncPrefectClient, deployed: str, receiver: Receiver
) -> None:
    flow_id = api.create_flow_from_name("a foreign flow")
    foreign_id = api.create_deployment(flow_id, "a-foreign-deployment", concurrency_limit=7)
    (died,) = api.read_automations_by_name(DIED)
    api.pause_automation(died.id)

    deploy(deployed, ADMIN_ALERT_WEBHOOK_URL=receiver.url)

    (again,) = api.read_automations_by_name(DIED)
    assert (again.id, again.enabled) == (died.id, False)
    assert len(api.read_automations_by_name(ALERTS)) == 1
    limits = {
        name: api.read_deployment_by_name(name).global_concurrency_limit
        for name in ("admin-sync/full", "admin-sync/changed")
    }
    assert limits["admin-sync/full"] == limits["admin-sync/changed"]
    foreign = api.read_deployment(foreign_id).global_concurrency_limit
    assert foreign is not None
    assert (foreign.limit, foreign.active_slots) == (7, 0)
    assert foreign.id != limits["admin-sync/full"].id

    put_automations(api, AlertSettings())

    assert api.read_automations_by_name(ALERTS) == []
    with pytest.raises(ObjectNotFound):
        api.read_block_document_by_name(ALERT_BLOCK, "webhook")
    put_automations(api, AlertSettings())


def test_a_run_that_a_worker_starts_has_frequent_heartbeats(api: SyncPrefectClient) -> None:
    for name in ("admin-sync/full", "admin-sync/changed"):
        environment = api.read_deployment_by_name(name).job_variables["env"]
        assert environment == {"PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30"}


def test_a_run_in_the_repository_has_frequent_heartbeats(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY)
    assert Settings().flows.heartbeat_frequency == 30
