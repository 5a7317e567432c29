"""Prefect's API goes away in the midst of a sync: it goes on, and both records are true."""

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from uuid import UUID

import httpx
import psutil
import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId
from prefect.client.schemas.objects import StateType
from prefect.settings import PREFECT_API_URL, temporary_settings

from scripts.local.prefect import local_prefect_server
from scripts.local.process import free_port
from tests.integration.served import process
from tests.integration.world import PATIENCE_SECONDS, World, wait_until


class OwnPrefect:
    """A Prefect server that a test may kill and start again on the same data."""

    def __init__(self, home: Path) -> None:
        self._home = home
        self._port = free_port()
        self._running = ExitStack()
        self.start()

    def start(self) -> None:
        self.api_url = self._running.enter_context(local_prefect_server(self._home, self._port))

    def kill(self) -> None:
        for child in psutil.Process().children():
            if str(self._port) in child.cmdline():
                child.send_signal(signal.SIGKILL)
        self._running.close()


@pytest.fixture
def own_prefect(prefect_home_in: Callable[[Path], Path], tmp_path: Path) -> Iterator[OwnPrefect]:
    prefect = OwnPrefect(prefect_home_in(tmp_path / "prefect"))
    yield prefect
    prefect.kill()


@pytest.mark.parametrize("seconds_away", [5])
def test_killed_in_mid_run_and_started_again(
    world: World, own_prefect: OwnPrefect, tmp_path: Path, seconds_away: int
) -> None:
    world.add_seed()
    world.add_tenants(150)
    world.hub.misbehave({"delay_ms": 60})
    with process(
        world, "scripts.sync_now", log_path=tmp_path / "log", PREFECT_API_URL=own_prefect.api_url
    ) as sync:
        wait_until(lambda: len(world.hub.requests()) >= 30)
        own_prefect.kill()
        time.sleep(seconds_away)
        own_prefect.start()
        exit_status = sync.wait(PATIENCE_SECONDS)

    log = (tmp_path / "log").read_text()
    (run,) = world.database.sync_runs.find()
    steps = list(world.database.sync_steps.find())
    assert run["totals"]["total"] == len(steps)
    assert run["totals"]["success"] == sum(step["ok"] for step in steps)
    with (
        temporary_settings({PREFECT_API_URL: own_prefect.api_url}),
        get_client(sync_client=True) as api,
    ):
        state = api.read_flow_run(UUID(run["flow_run_id"])).state_type
    assert (run["status"], state) == ("success", StateType.COMPLETED), log[-3000:]
    assert exit_status == 0
    assert len(steps) == 155


def test_a_busy_server_is_told_of_once_with_what_ends_it(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    send = httpx.AsyncHTTPTransport.handle_async_request
    busy = [httpx.Response(503, headers={"Retry-After": "1"})]

    async def send_unless_busy(
        transport: httpx.AsyncHTTPTransport, request: httpx.Request
    ) -> httpx.Response:
        if busy and request.url.path.endswith("/task_runs/"):
            return busy.pop()
        return await send(transport, request)

    monkeypatch.setattr(httpx.AsyncHTTPTransport, "handle_async_request", send_unless_busy)
    world.add_tenants(1)
    run = world.sync()
    assert run.document["status"] == "success"
    told = [record for record in caplog.records if "HTTP 503" in record.getMessage()]
    (notice,) = [(record.name, record.levelname) for record in told]
    assert notice == ("prefect.flow_runs", "WARNING")
    of_run = ArtifactFilterFlowRunId(any_=[UUID(run.document["flow_run_id"])])
    with get_client(sync_client=True) as prefect:
        found = prefect.read_artifacts(artifact_filter=ArtifactFilter(flow_run_id=of_run))
    (summary,) = (each.description for each in found if each.key == "summary")
    assert summary is not None
    assert "Prefect's server was busy" in summary
