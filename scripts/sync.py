"""Starts a sync, by a deployment or in this process, shows it, and tells what came of it."""

import argparse
import asyncio
import os
import shlex
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from json import JSONDecodeError
from pathlib import Path
from typing import Any, Final, get_args
from uuid import UUID, uuid4

import httpx
from prefect.client.orchestration import PrefectClient, get_client
from prefect.client.schemas.objects import State
from prefect.exceptions import ObjectNotFound
from prefect.settings import PREFECT_API_URL, get_current_settings, temporary_settings

from deployments.api.sync_deployment import PrefectUnavailable, SyncDeployment
from deployments.loopback import exempt_loopback_from_proxies
from flows.state_mirror import FLOW_NAME
from scripts.local.parts import SERVERS, named_settings
from scripts.local.started_servers import Server, servers_to_adopt
from scripts.run_outcome import tell_outcome
from scripts.run_progress import REFRESH_SECONDS, console, show_until_done
from scripts.sync_now import sync_here
from tasks.entities import ENTITY_NAMES, EntityName
from tasks.mongo import mongo_retry
from tasks.mongo_errors import MongoError
from tasks.prefect_api import fault_in_words, require_prefect_api
from tasks.settings import (
    MongoSettings,
    SettingsError,
    read_environment_settings,
    read_mongo_settings,
)
from tasks.trail.history import run_history
from tasks.trail.runs import RunOptions, SyncMode

_TRIGGER: Final = "scripts/sync"
_REPOSITORY: Final = Path(__file__).parents[1]
_WAITS: Final = {
    "AwaitingConcurrencySlot": "Another run of this deployment is under way: this one waits.",
    "Late": "No worker has taken the run yet: look whether one is up, and has room.",
}
"""What states of Prefect say of a run that has not begun."""


class StillRuns(Exception):
    """A run that was followed goes on, and is followed no more."""

    def __init__(self, flow_run_id: UUID) -> None:
        super().__init__(f"The sync goes on without this command, as flow run {flow_run_id}")
        self.flow_run_id = flow_run_id


def main() -> int:
    """Sync; 0 when every item is in, 1 when one is not, 2 without a run, 130 at Ctrl-C."""
    options = _options()
    exempt_loopback_from_proxies()
    try:
        with _servers_of_this_machine() as adopted:
            return _synced(options, adopted)
    except SettingsError as error:
        told = f"{error}{_way_out(error)}"
    except MongoError as error:
        told = str(error)
    except PrefectUnavailable as error:
        told = f"{error}."
    except (httpx.HTTPError, JSONDecodeError) as error:
        told = f"{fault_in_words(error)}."
    print(told, file=sys.stderr)
    return 2


def _way_out(error: SettingsError) -> str:
    if any(error.faults.get(server) == "is missing" for server in get_args(Server)):
        return (
            "; ./scripts/serve starts both servers on this machine, where this command finds them"
        )
    return ""


def _synced(options: RunOptions, adopted: Mapping[Server, str]) -> int:
    try:
        return asyncio.run(_sync(options))
    except StillRuns as left:
        print(f"{left}. To cancel it:\n{_cancelling(left, adopted)}", file=sys.stderr)
    except KeyboardInterrupt:
        print("The sync was interrupted.", file=sys.stderr)
    return 130


def _cancelling(left: StillRuns, adopted: Mapping[Server, str]) -> str:
    """Return a line that cancels a run when it is pasted into a shell."""
    api_url = adopted.get("PREFECT_API_URL")
    variable = f"PREFECT_API_URL={shlex.quote(api_url)} " if api_url else ""
    folder = shlex.quote(str(_REPOSITORY))
    return f"cd {folder} && {variable}.venv/bin/prefect flow-run cancel {left.flow_run_id}"


def _options() -> RunOptions:
    parser = argparse.ArgumentParser(prog="scripts/sync", description=__doc__)
    parser.add_argument(
        "mode",
        nargs="?",
        choices=[mode.value for mode in SyncMode],
        default=SyncMode.FULL.value,
        help="send every item, or only what Stage 1 does not hold as it is; default: %(default)s",
    )
    parser.add_argument(
        "--entities",
        type=_entities,
        default=ENTITY_NAMES,
        metavar="TYPE,...",
        help=f"only these of {', '.join(ENTITY_NAMES)}",
    )
    parser.add_argument("--dry-run", action="store_true", help="decide as a sync, send nothing")
    arguments = parser.parse_args()
    return RunOptions(
        _TRIGGER, tuple(arguments.entities), SyncMode(arguments.mode), arguments.dry_run
    )


def _entities(text: str) -> list[EntityName]:
    names = text.split(",")
    entities = [name for name in ENTITY_NAMES if name in names]
    if unknown := sorted(set(names) - set(entities)):
        raise argparse.ArgumentTypeError(f"{', '.join(unknown)}: not of {', '.join(ENTITY_NAMES)}")
    return entities


@contextmanager
def _servers_of_this_machine() -> Iterator[dict[Server, str]]:
    """Use what `./scripts/serve` has started, unless settings name other servers; yields that."""
    adopted = servers_to_adopt(SERVERS, _named_servers())
    for setting, address in adopted.items():
        os.environ[setting] = address
    api_url = adopted.get("PREFECT_API_URL")
    with temporary_settings({PREFECT_API_URL: api_url} if api_url else {}):
        yield adopted


def _named_servers() -> dict[Server, str]:
    named: dict[Server, str | None] = {
        "MONGODB_URI": named_settings().get("MONGODB_URI"),
        "PREFECT_API_URL": get_current_settings().api.url,
    }
    return {setting: address for setting, address in named.items() if address}


async def _sync(options: RunOptions) -> int:
    settings, environment = read_mongo_settings(), read_environment_settings()
    require_prefect_api()
    await asyncio.to_thread(mongo_retry(settings).await_mongodb)
    name = f"{FLOW_NAME}/{environment.named(options.mode.value)}"
    async with get_client() as prefect:
        deployment = SyncDeployment(prefect, environment, settings.mongodb_database)
        obstacle = await _obstacle(prefect, deployment, name)
        if obstacle is None:
            return await _sync_by(deployment, name, settings, options)
    console.print(f"The sync runs in this process. {obstacle}.")
    return await sync_here(options)


async def _obstacle(prefect: PrefectClient, deployment: SyncDeployment, name: str) -> str | None:
    """Return why no worker would take a run of the deployment of that name; None where one would.

    Raises:
        httpx.HTTPError: Prefect does not answer.
        JSONDecodeError: what answers is no Prefect API.
    """
    try:
        return await deployment.obstacle_to(await prefect.read_deployment_by_name(name))
    except ObjectNotFound:
        return f"Prefect has no deployment {name}"
    except PrefectUnavailable as fault:
        return str(fault)


async def _sync_by(
    deployment: SyncDeployment, name: str, settings: MongoSettings, options: RunOptions
) -> int:
    """Let a deployment run a sync, and tell what comes of it; returns the exit status.

    Raises:
        PrefectUnavailable: it did not take the sync.
        StillRuns: Ctrl-C was pressed.
    """
    flow_run, _ = await deployment.start(options, uuid4().hex)
    console.print(f"The deployment {name} runs the sync, as flow run {flow_run.id}.")
    ended = asyncio.ensure_future(_ended(deployment, str(flow_run.id)))
    try:
        await show_until_done(ended, run_history(settings), str(flow_run.id), options.entities)
        state = await ended
    except asyncio.CancelledError:
        raise StillRuns(flow_run.id) from None
    if state is None:
        print("Somebody has deleted the flow run in Prefect.", file=sys.stderr)
        return 1
    return await asyncio.to_thread(tell_outcome, settings, flow_run, state)


async def _ended(deployment: SyncDeployment, flow_run_id: str) -> State[Any] | None:
    """Wait for the end of a flow run, and say what it waits for; None where it was deleted."""
    told: str | None = None
    while True:
        try:
            flow_run = await deployment.flow_run(flow_run_id)
        except PrefectUnavailable as fault:
            said: str | None = f"{fault}."
        else:
            if flow_run is None or flow_run.state is None:
                return None
            if flow_run.state.is_final():
                return flow_run.state
            said = _WAITS.get(flow_run.state.name or "")
        if said and said != told:
            console.print(said)
            told = said
        await asyncio.sleep(REFRESH_SECONDS)


if __name__ == "__main__":
    sys.exit(main())
