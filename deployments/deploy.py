"""Brings to the Prefect server what it needs: work pool, deployments and automations."""

import argparse
import os
import subprocess
import sys
from collections.abc import Iterator
from json import JSONDecodeError
from pathlib import Path
from typing import Final
from uuid import UUID

import httpx
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import (
    DeploymentFilter,
    DeploymentFilterName,
    FlowFilter,
    FlowFilterName,
)
from prefect.client.schemas.responses import DeploymentResponse
from prefect.exceptions import ObjectNotFound

from deployments.automations import put_automations
from deployments.loopback import exempt_loopback_from_proxies
from flows.admin_sync import admin_sync
from flows.audit_sweep import audit_sweep
from tasks.prefect_api import fault_in_words, require_prefect_api
from tasks.settings import (
    AlertSettings,
    EnvironmentSettings,
    SettingsError,
    read_alert_settings,
    read_environment_settings,
)
from tasks.trail.runs import SyncMode

_REPOSITORY: Final = Path(__file__).parents[1]
_DEPLOYMENTS: Final = {
    **{mode.value: admin_sync.name for mode in SyncMode},
    "audit-sweep": audit_sweep.name,
}
"""Flow of each deployment of prefect.yaml."""
_USED_NO_MORE: Final = "every-5-minutes"
"""Schedule of `audit-sweep` in earlier versions."""
_PLACE: Final = "prefect.deployments.steps.set_working_directory"


class DeployFailed(RuntimeError):
    """The Prefect server did not take what prefect.yaml says."""


def deploy() -> None:
    """Make the work pool, deployments and automations of this environment, whatever is there.

    A schedule of a sync that is switched on stays on.

    Raises:
        DeployFailed: Prefect doesn't answer, did not take it, or holds what could not run; the
            message says which.
        SettingsError: no Prefect server is named, or the setting of the environment, or of where
            alerts go, is malformed.
    """
    environment, alerts = read_environment_settings(), read_alert_settings()
    require_prefect_api()
    try:
        with get_client(sync_client=True) as client:
            _deploy(client, environment, alerts)
    except (httpx.HTTPError, JSONDecodeError) as error:
        raise DeployFailed(f"{fault_in_words(error)}.") from None


def _deploy(
    client: SyncPrefectClient, environment: EnvironmentSettings, alerts: AlertSettings
) -> None:
    if not any(pool.name == environment.work_pool for pool in client.read_work_pools()):
        _prefect(environment, "work-pool", "create", environment.work_pool, "--type", "process")
    present = _deployments(client, environment)
    for deployment in present:
        _give_its_own_limit(client, deployment)
    switched_on = _switched_on(present)
    try:
        _prefect(environment, "deploy", "--all")
    finally:
        _correct_schedules(client, _deployments(client, environment), switched_on)
    _require_all_can_run(client, environment)
    put_automations(client, environment, alerts)


def _deployments(
    client: SyncPrefectClient, environment: EnvironmentSettings
) -> list[DeploymentResponse]:
    names = [environment.named(name) for name in _DEPLOYMENTS]
    return client.read_deployments(
        flow_filter=FlowFilter(name=FlowFilterName(any_=list(set(_DEPLOYMENTS.values())))),
        deployment_filter=DeploymentFilter(name=DeploymentFilterName(any_=names)),
    )


def _give_its_own_limit(client: SyncPrefectClient, deployment: DeploymentResponse) -> None:
    """Undo that deployments share a limit, as in earlier versions.

    Prefect refuses to deploy where the limit with a deployment's name is there, and not in use.
    """
    own_name = f"deployment:{deployment.id}"
    present = deployment.global_concurrency_limit
    if present is not None and present.name == own_name:
        return
    own = _limit_id(client, own_name)
    if present is not None or own is not None:
        client.request(
            "PATCH",
            "/deployments/{id}",
            path_params={"id": deployment.id},
            json={"global_concurrency_limit_id": own and str(own)},
        )


def _limit_id(client: SyncPrefectClient, name: str) -> UUID | None:
    try:
        return client.read_global_concurrency_limit_by_name(name).id
    except ObjectNotFound:
        return None


def _switched_on(deployments: list[DeploymentResponse]) -> set[tuple[UUID, str | None]]:
    return {
        (deployment.id, schedule.slug)
        for deployment in deployments
        for schedule in deployment.schedules
        if schedule.active
    }


def _correct_schedules(
    client: SyncPrefectClient,
    deployments: list[DeploymentResponse],
    switched_on: set[tuple[UUID, str | None]],
) -> None:
    """Switch on again what `prefect deploy` has switched off, and delete what it leaves behind."""
    for deployment in deployments:
        for schedule in deployment.schedules:
            if schedule.slug == _USED_NO_MORE:
                client.delete_deployment_schedule(deployment.id, schedule.id)
            elif not schedule.active and (deployment.id, schedule.slug) in switched_on:
                client.update_deployment_schedule(deployment.id, schedule.id, active=True)


def _require_all_can_run(client: SyncPrefectClient, environment: EnvironmentSettings) -> None:
    stored = {deployment.name: deployment for deployment in _deployments(client, environment)}
    faults = [
        f"{flow_name}/{environment.named(name)} {fault}"
        for name, flow_name in _DEPLOYMENTS.items()
        for fault in _faults(stored.get(environment.named(name)))
    ]
    if faults:
        raise DeployFailed(
            "No worker could run what Prefect has stored; correct prefect.yaml and deploy again: "
            + "; ".join(faults)
        )


def _faults(deployment: DeploymentResponse | None) -> Iterator[str]:
    if deployment is None:
        yield "is missing"
        return
    if deployment.work_pool_name is None:
        yield "has no work pool"
    path = (deployment.entrypoint or "").partition(":")[0]
    for step in deployment.pull_steps or []:
        place = step.get(_PLACE, {}).get("directory")
        if place is not None and not Path(place, path).is_file():
            yield f"is to run {path} in {place}, where it is not"


def _prefect(environment: EnvironmentSettings, *arguments: str) -> None:
    command = subprocess.run(
        [sys.executable, "-m", "prefect", "--no-prompt", *arguments],
        cwd=_REPOSITORY,
        env={
            **os.environ,
            "PWD": str(_REPOSITORY),
            "PYTHON": sys.executable,
            "ENVIRONMENT_SUFFIX": environment.suffix,
        },
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if command.returncode:
        raise DeployFailed(f"`prefect {' '.join(arguments)}` failed:\n{command.stdout}")


def main() -> int:
    """Deploy; 1 when Prefect does not take it, 2 when a setting is wrong."""
    argparse.ArgumentParser(prog="python -m deployments.deploy", description=__doc__).parse_args()
    exempt_loopback_from_proxies()
    try:
        deploy()
    except SettingsError as error:
        print(error, file=sys.stderr)
        return 2
    except DeployFailed as failure:
        print(failure, file=sys.stderr)
        return 1
    print("Work pool, deployments and automations are in place.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
