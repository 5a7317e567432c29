"""What deploying asks of Prefect, and what it says where Prefect does not do it."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import Mock
from uuid import UUID, uuid4

import httpx
import pytest
from prefect.client.schemas.objects import DeploymentSchedule
from prefect.client.schemas.schedules import CronSchedule

from deployments.deploy import WORK_POOL, DeployFailed, deploy, main

MADE = subprocess.CompletedProcess([], 0, "made")


class Prefect:
    """A Prefect server as its client shows it; `prefect deploy` switches all schedules off."""

    def __init__(self) -> None:
        self.pools: list[str] = []
        self.commands: list[tuple[str, ...]] = []
        self.limit_id = uuid4()
        self.limits: dict[UUID, UUID | None] = {}
        full, changed = uuid4(), uuid4()
        self.schedules = [schedule_of(full, "nightly"), schedule_of(changed, "hourly")]
        self.deployments = [
            Mock(id=changed, schedules=self.schedules[1:], global_concurrency_limit=None),
            Mock(id=full, schedules=self.schedules[:1], global_concurrency_limit=None),
        ]
        self.deployments[0].name, self.deployments[1].name = "changed", "full"
        self.answer = MADE

    def run(self, command: list[str], **_: Any) -> "subprocess.CompletedProcess[str]":
        self.commands.append(tuple(command[command.index("--no-prompt") + 1 :]))
        if command[-1] == "--all":
            for schedule in self.schedules:
                schedule.active = False
            for deployment in self.deployments:
                deployment.global_concurrency_limit = Mock(id=self.limit_id)
        return self.answer

    def read_work_pools(self) -> list[Any]:
        pools = [Mock() for _ in self.pools]
        for pool, name in zip(pools, self.pools, strict=True):
            pool.name = name
        return pools

    def read_deployments(self, **_: Any) -> list[Any]:
        return self.deployments

    def update_deployment_schedule(
        self, deployment_id: UUID, schedule_id: UUID, *, active: bool
    ) -> None:
        (schedule,) = [each for each in self.schedules if each.id == schedule_id]
        assert schedule.deployment_id == deployment_id
        schedule.active = active

    def request(self, method: str, path: str, path_params: Any, json: Any) -> None:
        assert (method, path) == ("PATCH", "/deployments/{id}")
        self.limits[path_params["id"]] = UUID(json["global_concurrency_limit_id"])


def schedule_of(deployment_id: UUID, slug: str) -> DeploymentSchedule:
    cron = CronSchedule(cron="0 3 * * *")
    return DeploymentSchedule(
        id=uuid4(), deployment_id=deployment_id, slug=slug, schedule=cron, active=False
    )


@pytest.fixture
def prefect(monkeypatch: pytest.MonkeyPatch) -> Prefect:
    prefect = Prefect()

    @contextmanager
    def client(*, sync_client: bool) -> Iterator[Prefect]:
        assert sync_client
        yield prefect

    monkeypatch.setattr("deployments.deploy.get_client", client)
    monkeypatch.setattr("deployments.deploy.subprocess.run", prefect.run)
    monkeypatch.setattr("deployments.deploy.put_automations", Mock())
    return prefect


def test_the_work_pool_is_made_where_it_is_missing(prefect: Prefect) -> None:
    deploy()
    create = ("work-pool", "create", WORK_POOL, "--type", "process")
    assert prefect.commands == [create, ("deploy", "--all")]
    prefect.commands, prefect.pools = [], [WORK_POOL]
    deploy()
    assert prefect.commands == [("deploy", "--all")]


def test_only_a_schedule_that_was_switched_on_is_on_afterwards(prefect: Prefect) -> None:
    nightly, hourly = prefect.schedules
    hourly.active = True
    deploy()
    assert (nightly.active, hourly.active) == (False, True)


def test_all_syncs_share_the_limit_of_the_first(prefect: Prefect) -> None:
    deploy()
    changed, full = prefect.deployments
    assert prefect.limits == {full.id: changed.global_concurrency_limit.id}


def test_what_prefect_refuses_is_told(prefect: Prefect, capsys: pytest.CaptureFixture[str]) -> None:
    prefect.answer = subprocess.CompletedProcess([], 1, "no such folder")
    assert main() == 1
    told = capsys.readouterr().err
    assert told.startswith(f"`prefect work-pool create {WORK_POOL} --type process` failed:")
    assert "no such folder" in told


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


def test_an_address_for_alerts_that_is_none_is_told_before_anything_is_made(
    prefect: Prefect, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ADMIN_ALERT_WEBHOOK_URL", "marked")
    assert main() == 1
    told = capsys.readouterr().err
    assert "ADMIN_ALERT_WEBHOOK_URL is not an http or https URL" in told
    assert "marked" not in told
    assert prefect.commands == []
