"""What deploying asks of Prefect, and what it says where Prefect does not do it."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from json import JSONDecodeError
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock
from uuid import UUID, uuid4

import httpx
import pytest
from prefect.client.schemas.objects import DeploymentSchedule
from prefect.client.schemas.schedules import CronSchedule
from prefect.exceptions import ObjectNotFound, PrefectHTTPStatusError
from prefect.settings import PREFECT_API_URL, temporary_settings

from deployments.deploy import DeployFailed, deploy, main

REPOSITORY = Path(__file__).parents[3]
MADE = subprocess.CompletedProcess([], 0, "made")
FLOWS = {"full": "admin_sync", "changed": "admin_sync", "audit-sweep": "audit_sweep"}


class Prefect:
    """A Prefect server as its client shows it; `prefect deploy` switches all schedules off."""

    def __init__(self) -> None:
        self.pools: list[str] = []
        self.commands: list[tuple[str, ...]] = []
        self.environments: list[dict[str, str]] = []
        self.deployments = {name: deployed(name, flow) for name, flow in FLOWS.items()}
        self.limits: dict[str, Any] = {}
        self.limit_of: dict[UUID, str | None] = {}
        self.deleted_schedules: list[UUID] = []
        self.answer = MADE

    def run(
        self, command: list[str], env: dict[str, str], **_: Any
    ) -> "subprocess.CompletedProcess[str]":
        self.commands.append(tuple(command[command.index("--no-prompt") + 1 :]))
        self.environments.append(env)
        if command[-1] == "--all":
            for deployment in self.deployments.values():
                for schedule in deployment.schedules:
                    schedule.active = False
        return self.answer

    def read_work_pools(self) -> list[Any]:
        return [SimpleNamespace(name=name) for name in self.pools]

    def read_deployments(self, *, flow_filter: Any, deployment_filter: Any) -> list[Any]:
        assert sorted(flow_filter.name.any_) == ["admin-sync", "audit-sweep"]
        wanted = deployment_filter.name.any_
        return [each for each in self.deployments.values() if each.name in wanted]

    def read_global_concurrency_limit_by_name(self, name: str) -> Any:
        if name not in self.limits:
            raise ObjectNotFound(ValueError())
        return self.limits[name]

    def schedule(self, name: str) -> DeploymentSchedule:
        (schedule,) = self.deployments[name].schedules
        assert isinstance(schedule, DeploymentSchedule)
        return schedule

    def update_deployment_schedule(
        self, deployment_id: UUID, schedule_id: UUID, *, active: bool
    ) -> None:
        (schedule,) = [
            schedule
            for deployment in self.deployments.values()
            for schedule in deployment.schedules
            if (deployment.id, schedule.id) == (deployment_id, schedule_id)
        ]
        schedule.active = active

    def delete_deployment_schedule(self, deployment_id: UUID, schedule_id: UUID) -> None:
        assert deployment_id
        self.deleted_schedules.append(schedule_id)

    def request(self, method: str, path: str, path_params: Any, json: Any) -> None:
        assert (method, path) == ("PATCH", "/deployments/{id}")
        self.limit_of[path_params["id"]] = json["global_concurrency_limit_id"]


def deployed(name: str, flow: str) -> Any:
    cron = CronSchedule(cron="0 3 * * *")
    schedule = DeploymentSchedule(
        id=uuid4(), slug=f"schedule of {name}", schedule=cron, active=False
    )
    place = {"prefect.deployments.steps.set_working_directory": {"directory": str(REPOSITORY)}}
    return SimpleNamespace(
        id=uuid4(),
        name=name,
        schedules=[schedule],
        global_concurrency_limit=None,
        work_pool_name="backoffice",
        pull_steps=[place],
        entrypoint=f"flows/{flow}.py:{flow}",
    )


@pytest.fixture
def prefect(monkeypatch: pytest.MonkeyPatch) -> Iterator[Prefect]:
    prefect = Prefect()
    monkeypatch.setattr("sys.argv", ["deploy"])
    for variable in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(variable, "")

    @contextmanager
    def client(*, sync_client: bool) -> Iterator[Prefect]:
        assert sync_client
        yield prefect

    monkeypatch.setattr("deployments.deploy.get_client", client)
    monkeypatch.setattr("deployments.deploy.subprocess.run", prefect.run)
    monkeypatch.setattr("deployments.deploy.put_automations", Mock())
    with temporary_settings({PREFECT_API_URL: "http://prefect.example/api"}):
        yield prefect


def test_the_work_pool_is_made_where_it_is_missing(prefect: Prefect) -> None:
    deploy()
    create = ("work-pool", "create", "backoffice", "--type", "process")
    assert prefect.commands == [create, ("deploy", "--all")]
    prefect.commands, prefect.pools = [], ["backoffice"]
    deploy()
    assert prefect.commands == [("deploy", "--all")]


@pytest.mark.parametrize("stale", ["/stale", None])
def test_prefect_is_told_where_this_is(
    prefect: Prefect, monkeypatch: pytest.MonkeyPatch, stale: str | None
) -> None:
    if stale is None:
        monkeypatch.delenv("PWD", raising=False)
    else:
        monkeypatch.setenv("PWD", stale)
    deploy()
    assert {environment["PWD"] for environment in prefect.environments} == {str(REPOSITORY)}


def test_only_a_schedule_that_was_switched_on_is_on_afterwards(prefect: Prefect) -> None:
    prefect.schedule("changed").active = True
    deploy()
    assert (prefect.schedule("full").active, prefect.schedule("changed").active) == (False, True)


def test_a_schedule_is_on_again_where_prefect_refuses_what_follows(prefect: Prefect) -> None:
    prefect.pools = ["backoffice"]
    prefect.schedule("full").active = True
    prefect.answer = subprocess.CompletedProcess([], 1, "no such folder")
    with pytest.raises(DeployFailed, match="no such folder"):
        deploy()
    assert prefect.schedule("full").active is True


def test_the_sweeps_schedule_of_earlier_versions_is_deleted(prefect: Prefect) -> None:
    schedule = prefect.schedule("audit-sweep")
    schedule.slug, schedule.active = "every-5-minutes", True
    deploy()
    assert prefect.deleted_schedules == [schedule.id]


@pytest.mark.parametrize("is_left", [True, False])
@pytest.mark.parametrize("shares", [True, False])
def test_a_deployment_has_a_limit_of_its_own(prefect: Prefect, shares: bool, is_left: bool) -> None:
    full, changed = prefect.deployments["full"], prefect.deployments["changed"]
    own = SimpleNamespace(id=uuid4(), name=f"deployment:{full.id}")
    limit_of_changed = SimpleNamespace(id=uuid4(), name=f"deployment:{changed.id}")
    changed.global_concurrency_limit = limit_of_changed
    full.global_concurrency_limit = limit_of_changed if shares else None
    if is_left:
        prefect.limits[own.name] = own
    deploy()
    taken = str(own.id) if is_left else None
    assert prefect.limit_of == ({full.id: taken} if shares or is_left else {})


def test_what_prefect_refuses_is_told(prefect: Prefect, capsys: pytest.CaptureFixture[str]) -> None:
    prefect.answer = subprocess.CompletedProcess([], 1, "no such folder")
    assert main() == 1
    told = capsys.readouterr().err
    assert told.startswith("`prefect work-pool create backoffice --type process` failed:")
    assert "no such folder" in told


@pytest.mark.parametrize(
    ("stored", "fault"),
    [
        ({"work_pool_name": None}, "admin-sync/full has no work pool"),
        ({"name": "fool"}, "admin-sync/full is missing"),
        ({"entrypoint": "flows/gone.py:admin_sync"}, "is to run flows/gone.py in "),
        (
            {
                "pull_steps": [
                    {"prefect.deployments.steps.set_working_directory": {"directory": "/gone"}}
                ]
            },
            "is to run flows/admin_sync.py in /gone, where it is not",
        ),
    ],
)
def test_what_could_not_run_is_a_failure(
    prefect: Prefect, stored: dict[str, Any], fault: str
) -> None:
    vars(prefect.deployments["full"]).update(stored)
    with pytest.raises(DeployFailed, match=fault) as failed:
        deploy()
    assert "deploy again" in str(failed.value)


def test_a_prefect_that_does_not_answer_is_told(
    prefect: Prefect, monkeypatch: pytest.MonkeyPatch
) -> None:
    away = Mock(side_effect=httpx.ConnectError("http://user:marked@prefect.example"))
    monkeypatch.setattr(prefect, "read_work_pools", away)
    with pytest.raises(DeployFailed) as raised:
        deploy()
    assert str(raised.value) == (
        "Prefect does not answer (ConnectError): check PREFECT_API_URL and that the server is up."
    )


def test_a_wrong_password_is_called_one(
    prefect: Prefect, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    request = httpx.Request("POST", "http://prefect.example/api/work_pools/filter")
    refusal = PrefectHTTPStatusError(
        "401", request=request, response=httpx.Response(401, request=request)
    )
    monkeypatch.setattr(prefect, "read_work_pools", Mock(side_effect=refusal))
    assert main() == 1
    assert "Prefect refuses the password (HTTP 401)" in capsys.readouterr().err


def test_an_address_without_a_prefect_api_is_told(
    prefect: Prefect, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = JSONDecodeError("Expecting value", "<html>", 0)
    monkeypatch.setattr(prefect, "read_work_pools", Mock(side_effect=page))
    assert main() == 1
    assert "PREFECT_API_URL" in capsys.readouterr().err


def test_without_a_prefect_api_nothing_is_made(
    prefect: Prefect, capsys: pytest.CaptureFixture[str]
) -> None:
    with temporary_settings(restore_defaults={PREFECT_API_URL}):
        assert main() == 2
    assert "PREFECT_API_URL is missing" in capsys.readouterr().err
    assert prefect.commands == []


@pytest.mark.parametrize("variable", ["ADMIN_ALERT_WEBHOOK_URL", "ADMIN_ENVIRONMENT"])
def test_a_setting_that_is_malformed_is_told_before_anything_is_made(
    prefect: Prefect,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    variable: str,
) -> None:
    monkeypatch.setenv(variable, "Marked!")
    assert main() == 2
    told = capsys.readouterr().err
    assert f"{variable} is " in told
    assert "Marked" not in told
    assert prefect.commands == []
