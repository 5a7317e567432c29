"""Brings prefect.yaml to the Prefect server: the work pool where it is missing, and deployments."""

import subprocess
import sys
from pathlib import Path
from typing import Final
from uuid import UUID

import httpx
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.objects import DeploymentSchedule

WORK_POOL: Final = "backoffice"
_REPOSITORY: Final = Path(__file__).parents[1]


class DeployFailed(RuntimeError):
    """The Prefect server did not take what prefect.yaml says."""


def deploy() -> None:
    """Make the work pool and the deployments; a schedule that is switched on stays on.

    The deployments share one concurrency limit, so that no two of their runs overlap.

    Raises:
        DeployFailed: Prefect doesn't answer, or did not take it; the message says which.
    """
    try:
        with get_client(sync_client=True) as client:
            _deploy(client)
    except httpx.HTTPError as error:
        raise DeployFailed(
            f"Prefect does not answer ({type(error).__name__}): "
            "check PREFECT_API_URL and that the server is up."
        ) from None


def _deploy(client: SyncPrefectClient) -> None:
    if not any(pool.name == WORK_POOL for pool in client.read_work_pools()):
        _prefect("work-pool", "create", WORK_POOL, "--type", "process")
    switched_on = {_place(schedule) for schedule in _schedules(client) if schedule.active}
    _prefect("deploy", "--all")
    for schedule in _schedules(client):
        if _place(schedule) in switched_on and not schedule.active:
            _switch_on(client, schedule)
    _share_limit(client)


def _schedules(client: SyncPrefectClient) -> list[DeploymentSchedule]:
    return [
        schedule for deployment in client.read_deployments() for schedule in deployment.schedules
    ]


def _place(schedule: DeploymentSchedule) -> tuple[UUID | None, str | None]:
    return schedule.deployment_id, schedule.slug


def _switch_on(client: SyncPrefectClient, schedule: DeploymentSchedule) -> None:
    if schedule.deployment_id is not None:
        client.update_deployment_schedule(schedule.deployment_id, schedule.id, active=True)


def _share_limit(client: SyncPrefectClient) -> None:
    """Let all deployments take turns; prefect.yaml can give each only a limit of its own."""
    first, *others = sorted(client.read_deployments(), key=lambda deployment: deployment.name)
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
    except DeployFailed as failure:
        print(failure, file=sys.stderr)
        return 1
    print("Work pool and deployments are in place.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
