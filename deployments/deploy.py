"""Brings to the Prefect server what it needs: work pool, deployments and automations."""

import subprocess
import sys
from pathlib import Path
from typing import Final
from uuid import UUID

import httpx
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import FlowFilter, FlowFilterName
from prefect.client.schemas.objects import DeploymentSchedule
from prefect.client.schemas.responses import DeploymentResponse

from deployments.automations import put_automations
from flows.admin_sync import admin_sync
from tasks.settings import AlertSettings, SettingsError, read_alert_settings

WORK_POOL: Final = "backoffice"
_REPOSITORY: Final = Path(__file__).parents[1]


class DeployFailed(RuntimeError):
    """The Prefect server did not take what prefect.yaml says."""


def deploy() -> None:
    """Make the work pool, deployments and automations; a schedule that is switched on stays on.

    The deployments of `admin-sync` share one concurrency limit, so that no two syncs overlap.

    Raises:
        DeployFailed: Prefect doesn't answer, or did not take it; the message says which.
        SettingsError: the setting of where alerts go is malformed.
    """
    alerts = read_alert_settings()
    try:
        with get_client(sync_client=True) as client:
            _deploy(client, alerts)
    except httpx.HTTPError as error:
        raise DeployFailed(
            f"Prefect does not answer ({type(error).__name__}): "
            "check PREFECT_API_URL and that the server is up."
        ) from None


def _deploy(client: SyncPrefectClient, alerts: AlertSettings) -> None:
    if not any(pool.name == WORK_POOL for pool in client.read_work_pools()):
        _prefect("work-pool", "create", WORK_POOL, "--type", "process")
    switched_on = {_place(schedule) for schedule in _schedules(client) if schedule.active}
    _prefect("deploy", "--all")
    for schedule in _schedules(client):
        if _place(schedule) in switched_on and not schedule.active:
            _switch_on(client, schedule)
    _share_limit(client)
    put_automations(client, alerts)


def _sync_deployments(client: SyncPrefectClient) -> list[DeploymentResponse]:
    syncs = FlowFilter(name=FlowFilterName(any_=[admin_sync.name]))
    return client.read_deployments(flow_filter=syncs)


def _schedules(client: SyncPrefectClient) -> list[DeploymentSchedule]:
    return [
        schedule for deployment in _sync_deployments(client) for schedule in deployment.schedules
    ]


def _place(schedule: DeploymentSchedule) -> tuple[UUID | None, str | None]:
    return schedule.deployment_id, schedule.slug


def _switch_on(client: SyncPrefectClient, schedule: DeploymentSchedule) -> None:
    if schedule.deployment_id is not None:
        client.update_deployment_schedule(schedule.deployment_id, schedule.id, active=True)


def _share_limit(client: SyncPrefectClient) -> None:
    """Let all syncs take turns; prefect.yaml can give each deployment only a limit of its own."""
    first, *others = sorted(_sync_deployments(client), key=lambda deployment: deployment.name)
    limit = first.global_concurrency_limit
    if limit is None:
        return
    for deployment in others:
        client.request(
            "PATCH",
            "/deployments/{id}",
            path_params={"id": deployment.id},
            json={"global_concurrency_limit_id": str(limit.id)},
        )


def _prefect(*arguments: str) -> None:
    command = subprocess.run(
        [sys.executable, "-m", "prefect", "--no-prompt", *arguments],
        cwd=_REPOSITORY,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if command.returncode:
        raise DeployFailed(f"`prefect {' '.join(arguments)}` failed:\n{command.stdout}")


def main() -> int:
    try:
        deploy()
    except (DeployFailed, SettingsError) as failure:
        print(failure, file=sys.stderr)
        return 1
    print("Work pool, deployments and automations are in place.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
