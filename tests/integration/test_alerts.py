"""Alerts, by an automation of a real Prefect server."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.exceptions import ObjectNotFound
from prefect.states import Completed, Crashed, Failed, Late, State

from deployments.automations import alert_block, alerts_name, put_automations
from flows.admin_sync import admin_sync
from flows.audit_sweep import audit_sweep
from flows.conclusion import PARTIAL, STOPPED
from scripts.local.prefect import local_prefect_server
from tasks.settings import AlertSettings, EnvironmentSettings
from tests.integration.world import prefect_at, wait_until

MARKED_PATH = "/hooks/marked-9d27"
PRODUCTION = EnvironmentSettings()
STAGING = EnvironmentSettings(ADMIN_ENVIRONMENT="staging")


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


@pytest.fixture(scope="module")
def receiver() -> Iterator[Receiver]:
    with receiving() as receiver:
        yield receiver


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("prefect-of-alerts")


@pytest.fixture(scope="module")
def api(
    receiver: Receiver, home: Path, prefect_home_in: Callable[[Path], Path]
) -> Iterator[SyncPrefectClient]:
    """A Prefect server of its own, with alerts: they must not be those of other tests."""
    with (
        local_prefect_server(prefect_home_in(home)) as url,
        prefect_at(url),
        get_client(sync_client=True) as client,
    ):
        put_automations(client, PRODUCTION, alerts_to(receiver))
        yield client


def alerts_to(receiver: Receiver) -> AlertSettings:
    return AlertSettings(ADMIN_ALERT_WEBHOOK_URL=receiver.url)


def a_run(
    api: SyncPrefectClient, name: str, state: State[Any], deployment: str = "full"
) -> FlowRun:
    """Create a run of `admin-sync` as a door does, and put it into a state."""
    deployment_id = api.create_deployment(api.create_flow(admin_sync), deployment)
    flow_run = api.create_flow_run_from_deployment(deployment_id, name=name)
    api.set_flow_run_state(flow_run.id, state, force=True)
    return flow_run


def test_each_bad_ending_is_one_alert(api: SyncPrefectClient, receiver: Receiver) -> None:
    a_run(api, "it succeeded", Completed(message="2 items"))
    runs = [
        a_run(api, f"it is {state.name}", state, deployment)
        for deployment, state in [
            ("full", Failed(message="1 of 1 items failed")),
            ("changed", Failed(name=PARTIAL, message="1 of 2 items failed")),
            ("full", Failed(name=STOPPED, message='killed by <"somebody">\n& co.')),
            ("changed", Failed(name="TimedOut", message="after an hour")),
            ("full", Crashed(message="its process is gone")),
        ]
    ]
    late = a_run(api, "it is late", Late(scheduled_time=datetime.now(UTC)))

    # One alert may overtake another.
    wait_until(lambda: len(receiver.texts) >= 6)
    dashboard = str(api.api_url).removesuffix("/api/")
    told = [api.read_flow_run(run.id) for run in runs]
    assert sorted(receiver.texts) == sorted(
        [
            *(
                f"admin-sync is {run.state.name}: {run.name}\n{run.state.message}\n"
                f"{dashboard}/runs/flow-run/{run.id}"
                for run in told
                if run.state
            ),
            f"admin-sync is Late: it is late\n{dashboard}/runs/flow-run/{late.id}",
        ]
    )


def test_runs_that_nobody_runs_are_told_of_once_an_hour(
    api: SyncPrefectClient, receiver: Receiver
) -> None:
    for number in range(3):
        a_run(api, f"late {number}", Late(scheduled_time=datetime.now(UTC)), "changed")
    a_run(api, "the end of the late ones", Crashed())
    # One alert may overtake another.
    wait_until(lambda: receiver.about("the end of") and len(receiver.about("late ")) >= 2)
    assert len(receiver.about("late ")) == 2, "the first of them, and the end"


def test_a_late_sweep_is_skipped_and_none_catches_up(api: SyncPrefectClient) -> None:
    deployment_id = api.create_deployment(api.create_flow(audit_sweep), "audit-sweep")
    flow_run = api.create_flow_run_from_deployment(deployment_id)
    api.set_flow_run_state(flow_run.id, Late(scheduled_time=datetime.now(UTC)), force=True)

    def ended() -> State[Any] | None:
        state = api.read_flow_run(flow_run.id).state
        return state if state and state.is_final() else None

    state = wait_until(ended)
    assert (state.type, state.name) == (StateType.CANCELLED, "Skipped")


def test_an_environment_is_told_of_its_own_runs_alone(
    api: SyncPrefectClient, receiver: Receiver
) -> None:
    with receiving() as of_staging:
        put_automations(api, STAGING, alerts_to(of_staging))
        a_run(api, "in another environment", Crashed(), "full-other")
        a_run(api, "in staging", Crashed(), "full-staging")
        a_run(api, "in production", Crashed())
        wait_until(lambda: of_staging.texts and receiver.about("in production"))
        put_automations(api, STAGING, AlertSettings())
    (told,) = of_staging.texts
    assert told.startswith("admin-sync-staging is Crashed: in staging\n")
    assert not receiver.about("in staging")
    assert not receiver.about("in another environment")
    assert api.read_automations_by_name(alerts_name(STAGING)) == []
    assert len(api.read_automations_by_name(alerts_name(PRODUCTION))) == 1


def test_the_webhooks_address_is_a_secret_in_prefect(
    api: SyncPrefectClient, receiver: Receiver, home: Path
) -> None:
    a_run(api, "one more alert", Crashed())
    wait_until(lambda: receiver.about("one more alert"))
    (alerts,) = api.read_automations_by_name(alerts_name(PRODUCTION))
    assert MARKED_PATH not in alerts.model_dump_json()
    for include_secrets in (False, True):
        name = alert_block(PRODUCTION)
        block = api.read_block_document_by_name(name, "webhook", include_secrets)
        assert (block.data["url"] == receiver.url) is include_secrets
    written = [path for path in home.rglob("*") if path.is_file()]
    assert {"prefect.db", "server.log"} <= {path.name for path in written}
    assert [path for path in written if MARKED_PATH.encode() in path.read_bytes()] == []


def test_an_automation_that_is_off_stays_off_until_it_goes(
    api: SyncPrefectClient, receiver: Receiver
) -> None:
    (alerts,) = api.read_automations_by_name(alerts_name(PRODUCTION))
    api.pause_automation(alerts.id)
    put_automations(api, PRODUCTION, alerts_to(receiver))
    (again,) = api.read_automations_by_name(alerts_name(PRODUCTION))
    assert (again.id, again.enabled) == (alerts.id, False)

    for _ in range(2):
        put_automations(api, PRODUCTION, AlertSettings())
        assert api.read_automations_by_name(alerts_name(PRODUCTION)) == []
        with pytest.raises(ObjectNotFound):
            api.read_block_document_by_name(alert_block(PRODUCTION), "webhook")
