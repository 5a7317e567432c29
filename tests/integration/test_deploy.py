"""Deploying to a real Prefect server, again and again, whatever is there."""

import os
from collections.abc import Iterator
from datetime import timedelta

import pytest
from prefect.automations import Automation, DoNothing, EventTrigger, Posture
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import DeploymentScheduleCreate
from prefect.client.schemas.objects import DeploymentSchedule, StateType
from prefect.client.schemas.responses import DeploymentResponse
from prefect.client.schemas.schedules import IntervalSchedule
from prefect.states import Cancelled, Pending

from deployments.deploy import main
from tests.integration.world import REPOSITORY

NAMES = ("admin-sync/full", "admin-sync/changed", "audit-sweep/audit-sweep")
DIED = "admin-sync: crashed without a word"


@pytest.fixture
def prefect(prefect_api_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[SyncPrefectClient]:
    """A Prefect server that others use, too: so this is in an environment of its own."""
    monkeypatch.setenv("PREFECT_API_URL", prefect_api_url)
    monkeypatch.setenv("ADMIN_ENVIRONMENT", "again")
    monkeypatch.setattr("sys.argv", ["deploy"])
    for variable in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(variable, "")
    with get_client(sync_client=True) as client:
        yield client
        for name in NAMES:
            client.delete_deployment(deployment(client, name).id)
        client.delete_work_pool("backoffice-again")


def deployment(prefect: SyncPrefectClient, name: str) -> DeploymentResponse:
    return prefect.read_deployment_by_name(f"{name}-again")


def share_a_limit(prefect: SyncPrefectClient) -> None:
    """Let both deployments have the limit of `changed`, as earlier versions did."""
    full, changed = (deployment(prefect, name) for name in NAMES[:2])
    assert changed.global_concurrency_limit is not None
    limit = {"global_concurrency_limit_id": str(changed.global_concurrency_limit.id)}
    prefect.request("PATCH", "/deployments/{id}", path_params={"id": full.id}, json=limit)


def add_what_is_used_no_more(prefect: SyncPrefectClient) -> None:
    """Make the automation and the schedule of earlier versions."""
    trigger = EventTrigger(expect={"a"}, posture=Posture.Reactive, threshold=1)
    Automation(name=DIED, trigger=trigger, actions=[DoNothing()]).create()
    every = IntervalSchedule(interval=timedelta(minutes=5))
    schedule = DeploymentScheduleCreate(schedule=every, slug="every-5-minutes", active=True)
    sweep = deployment(prefect, NAMES[2])
    prefect.request(
        "POST",
        "/deployments/{id}/schedules",
        path_params={"id": sweep.id},
        json=[schedule.model_dump(mode="json")],
    )


def require_all_is_in_place(prefect: SyncPrefectClient) -> None:
    for name in NAMES:
        deployed = deployment(prefect, name)
        (step,) = deployed.pull_steps or []
        ((_, place),) = step.items()
        assert place == {"directory": str(REPOSITORY)}
        assert deployed.work_pool_name == "backoffice-again"
        limit = deployed.global_concurrency_limit
        assert limit
        runs = 1 if name == NAMES[2] else 2
        assert (limit.name, limit.limit) == (f"deployment:{deployed.id}", runs)
    (schedule,) = deployment(prefect, NAMES[2]).schedules
    assert (schedule.slug, schedule.active) == ("every-2-minutes", True)
    assert isinstance(schedule.schedule, IntervalSchedule)
    assert schedule.schedule.interval == timedelta(minutes=2)
    assert prefect.read_automations_by_name(DIED) == []


def nightly_of(prefect: SyncPrefectClient) -> DeploymentSchedule:
    (nightly,) = deployment(prefect, NAMES[0]).schedules
    return nightly


def switch_nightly(prefect: SyncPrefectClient, *, on: bool) -> None:
    full, nightly = deployment(prefect, NAMES[0]), nightly_of(prefect)
    assert nightly.active is not on
    prefect.update_deployment_schedule(full.id, nightly.id, active=on)


def require_that_sweeps_never_overlap(prefect: SyncPrefectClient) -> None:
    sweep = deployment(prefect, NAMES[2]).id
    first, second = (prefect.create_flow_run_from_deployment(sweep).id for _ in range(2))
    for flow_run_id in (first, second):
        prefect.set_flow_run_state(flow_run_id, Pending())
    assert prefect.read_flow_run(first).state_type is StateType.PENDING
    assert prefect.read_flow_run(second).state_type is StateType.CANCELLED
    prefect.set_flow_run_state(first, Cancelled())


def test_deploying_can_be_repeated_whatever_is_left(
    prefect: SyncPrefectClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PWD", "/stale")
    assert main() == 0
    require_all_is_in_place(prefect)
    switch_nightly(prefect, on=True)
    nightly = nightly_of(prefect)

    monkeypatch.delenv("PWD")
    share_a_limit(prefect)
    add_what_is_used_no_more(prefect)
    assert main() == 0
    require_all_is_in_place(prefect)
    after = nightly_of(prefect)
    assert (after.active, after.schedule) == (True, nightly.schedule)
    switch_nightly(prefect, on=False)

    share_a_limit(prefect)
    prefect.delete_deployment(deployment(prefect, "admin-sync/changed").id)
    prefect.delete_work_pool("backoffice-again")
    assert main() == 0
    require_all_is_in_place(prefect)
    assert "PWD" not in os.environ
    require_that_sweeps_never_overlap(prefect)
