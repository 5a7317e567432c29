"""`./scripts/sync`: where it lets a sync run, what it says meanwhile, and how it ends."""

import os
import signal
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from unittest.mock import AsyncMock, MagicMock, Mock

import httpx
import pytest
from prefect.client.schemas.objects import FlowRun, State
from prefect.exceptions import ObjectNotFound
from prefect.settings import PREFECT_API_URL, get_current_settings, temporary_settings
from prefect.states import AwaitingConcurrencySlot, Completed, Failed, Late, Running

from deployments.api.sync_deployment import PrefectUnavailable
from scripts.sync import main
from tasks.settings import read_mongo_settings
from tasks.trail.runs import RunOptions, SyncMode

ALL: Final = ("tenant", "client", "subtenant", "domain", "branding")
FLOW_RUN: Final = uuid.UUID(int=1)
API_URL: Final = "http://127.0.0.1:4200/api"
Look = State[Any] | PrefectUnavailable | Callable[[], None] | None


@dataclass
class Deployment:
    """A deployment: what stands in a run's way, and how the run looks, look by look."""

    looks: list[Look] = field(default_factory=lambda: [Completed(message="All in")])
    obstacle: str | PrefectUnavailable | None = None
    started: list[RunOptions] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)

    async def obstacle_to(self, _deployment: object) -> str | None:
        if isinstance(self.obstacle, PrefectUnavailable):
            raise self.obstacle
        return self.obstacle

    async def start(self, options: RunOptions, key: str) -> tuple[FlowRun, bool]:
        self.started.append(options)
        self.keys.append(key)
        return a_flow_run(), True

    async def flow_run(self, flow_run_id: str) -> FlowRun | None:
        assert flow_run_id == str(FLOW_RUN)
        look = self.looks.pop(0)
        if isinstance(look, PrefectUnavailable):
            raise look
        if callable(look):
            look()
            return a_flow_run()
        return look and a_flow_run(state=look)


def a_flow_run(**fields: Any) -> FlowRun:
    return FlowRun(id=FLOW_RUN, flow_id=uuid.uuid4(), name="a run", **fields)


@pytest.fixture(autouse=True)
def prefect(monkeypatch: pytest.MonkeyPatch) -> Mock:
    """The client of Prefect, which has every deployment that it is asked for."""
    client = MagicMock(read_deployment_by_name=AsyncMock())
    client.__aenter__.return_value = client
    monkeypatch.setattr("scripts.sync.get_client", lambda: client)
    return client


@pytest.fixture(autouse=True)
def deployment(monkeypatch: pytest.MonkeyPatch) -> Iterator[Deployment]:
    """A deployment whose run succeeds, on servers that the environment names."""
    deployment = Deployment()
    monkeypatch.setattr("sys.argv", ["sync"])
    monkeypatch.setattr("scripts.sync.REFRESH_SECONDS", 0)
    monkeypatch.setattr("scripts.run_progress.REFRESH_SECONDS", 0)
    monkeypatch.setattr("scripts.sync.SERVERS", Path("no such file"))
    monkeypatch.setattr("scripts.sync.SyncDeployment", lambda *_: deployment)
    monkeypatch.setattr("scripts.sync.mongo_retry", Mock())
    monkeypatch.setattr("scripts.sync.run_history", lambda _: Mock(run_of=lambda _: None))
    monkeypatch.setattr("scripts.sync.tell_outcome", told)
    for variable in ("NO_PROXY", "no_proxy", "PREFECT_API_URL"):
        monkeypatch.setenv(variable, "")
    monkeypatch.setenv("MONGODB_URI", "mongodb://127.0.0.1:9")
    with temporary_settings({PREFECT_API_URL: API_URL}):
        yield deployment


def told(_settings: object, flow_run: FlowRun, state: State[Any]) -> int:
    print(f"{flow_run.name}: {state.message}")
    return 0 if state.is_completed() else 1


def sync_here(monkeypatch: pytest.MonkeyPatch, exit_status: int = 0) -> AsyncMock:
    here = AsyncMock(return_value=exit_status)
    monkeypatch.setattr("scripts.sync.sync_here", here)
    return here


def test_a_deployment_runs_it_where_a_worker_would_take_it(
    deployment: Deployment, prefect: Mock, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main() == 0
    prefect.read_deployment_by_name.assert_awaited_once_with("admin-sync/full")
    assert deployment.started == [RunOptions("scripts/sync", ALL)]
    first, *_, last = capsys.readouterr().out.splitlines()
    assert first == f"The deployment admin-sync/full runs the sync, as flow run {FLOW_RUN}."
    assert last == "a run: All in"


def test_what_is_asked_for_is_what_is_started(
    deployment: Deployment, prefect: Mock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ADMIN_ENVIRONMENT", "staging")
    arguments = ["changed", "--entities", "domain,tenant", "--dry-run"]
    monkeypatch.setattr("sys.argv", ["sync", *arguments])
    assert main() == 0
    prefect.read_deployment_by_name.assert_awaited_once_with("admin-sync/changed-staging")
    wanted = RunOptions("scripts/sync", ("tenant", "domain"), SyncMode.CHANGED, dry_run=True)
    assert deployment.started == [wanted]


def test_two_commands_mean_two_runs(deployment: Deployment) -> None:
    deployment.looks *= 2
    assert (main(), main()) == (0, 0)
    assert len(set(deployment.keys)) == 2


@pytest.mark.parametrize("arguments", [["all"], ["--entities", "tenants"], ["--entities="]])
def test_wrong_arguments_start_nothing(
    deployment: Deployment, monkeypatch: pytest.MonkeyPatch, arguments: list[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["sync", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert deployment.started == []


def test_a_run_in_which_not_all_is_in_fails(deployment: Deployment) -> None:
    deployment.looks = [Running(), Failed(message="1 of 5 items failed")]
    assert main() == 1


def test_what_a_run_waits_for_is_told_once(
    deployment: Deployment, capsys: pytest.CaptureFixture[str]
) -> None:
    waiting, away = AwaitingConcurrencySlot(), PrefectUnavailable("Prefect does not answer")
    deployment.looks = [waiting, waiting, away, away, Late(), Running(), Completed()]
    assert main() == 0
    out = capsys.readouterr().out
    for said in (
        "Another run of this deployment is under way: this one waits.",
        "Prefect does not answer.",
        "No worker has taken the run yet: look whether one is up, and has room.",
    ):
        assert out.count(said) == 1


def test_a_run_that_is_deleted_meanwhile_is_told(
    deployment: Deployment, capsys: pytest.CaptureFixture[str]
) -> None:
    deployment.looks = [Running(), None]
    assert main() == 1
    assert capsys.readouterr().err == "Somebody has deleted the flow run in Prefect.\n"


def test_ctrl_c_leaves_the_run_alone_and_tells_how_to_cancel_it(
    deployment: Deployment, capsys: pytest.CaptureFixture[str]
) -> None:
    deployment.looks = [lambda: os.kill(os.getpid(), signal.SIGINT), Running(), Running()]
    assert main() == 130
    told = capsys.readouterr().err
    assert told.startswith(f"The sync goes on without this command, as flow run {FLOW_RUN}.")
    assert told.endswith(f" && .venv/bin/prefect flow-run cancel {FLOW_RUN}\n")


@pytest.mark.parametrize(
    ("obstacle", "said"),
    [
        ("No worker of the work pool backoffice is up", "No worker of the work pool backoffice"),
        (PrefectUnavailable("A deployment of admin-sync has no work pool"), "has no work pool."),
    ],
)
def test_where_no_worker_would_take_it_this_process_runs_it_and_says_why(
    deployment: Deployment,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    obstacle: str | PrefectUnavailable,
    said: str,
) -> None:
    deployment.obstacle = obstacle
    here = sync_here(monkeypatch, exit_status=1)
    assert main() == 1
    here.assert_awaited_once_with(RunOptions("scripts/sync", ALL))
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("The sync runs in this process. ")
    assert said in line
    assert deployment.started == []


def test_without_a_deployment_this_process_runs_it(
    prefect: Mock, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    prefect.read_deployment_by_name.side_effect = ObjectNotFound(Mock())
    sync_here(monkeypatch)
    assert main() == 0
    told = "The sync runs in this process. Prefect has no deployment admin-sync/full.\n"
    assert capsys.readouterr().out == told


def test_a_prefect_that_does_not_answer_is_told(
    prefect: Mock, capsys: pytest.CaptureFixture[str]
) -> None:
    prefect.read_deployment_by_name.side_effect = httpx.ConnectError("refused")
    assert main() == 2
    assert capsys.readouterr().err.startswith("Prefect does not answer (ConnectError)")


@pytest.mark.parametrize("missing", ["MONGODB_URI", "PREFECT_API_URL"])
def test_where_no_server_is_named_the_way_to_one_is_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], missing: str
) -> None:
    if missing == "MONGODB_URI":
        monkeypatch.setenv("MONGODB_URI", "")
    with temporary_settings(restore_defaults={PREFECT_API_URL}):
        assert main() == 2
    told = capsys.readouterr().err
    assert f"{missing} is missing; ./scripts/serve starts both servers on this machine" in told


def test_servers_that_serve_has_started_are_used_where_none_is_named(
    deployment: Deployment, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    started = {"MONGODB_URI": "mongodb://127.0.0.1:50077", "PREFECT_API_URL": API_URL}
    monkeypatch.setattr("scripts.sync.servers_to_adopt", lambda *_: started)
    monkeypatch.setenv("MONGODB_URI", "")
    seen: list[str | None] = []

    def look() -> None:
        seen.append(read_mongo_settings().mongodb_uri.get_secret_value())
        seen.append(get_current_settings().api.url)
        os.kill(os.getpid(), signal.SIGINT)

    deployment.looks = [look, Running(), Running()]
    with temporary_settings(restore_defaults={PREFECT_API_URL}):
        assert main() == 130
    assert seen == list(started.values())
    assert f" && PREFECT_API_URL={API_URL} .venv/bin/prefect" in capsys.readouterr().err
