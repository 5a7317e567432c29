"""Runs a sync in this process, shows it while it runs, and tells what came of it."""

import argparse
import asyncio
import sys
from json import JSONDecodeError
from typing import Any, Final, cast

import httpx
from prefect import Flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import State
from prefect.exceptions import Abort
from prefect.flow_engine import run_flow_async

from deployments.loopback import exempt_loopback_from_proxies
from flows.admin_sync import admin_sync
from scripts.run_outcome import tell_outcome
from scripts.run_progress import show_until_done
from tasks.entities import ENTITY_NAMES
from tasks.mongo_errors import MongoError
from tasks.prefect_api import fault_in_words, require_prefect_api
from tasks.settings import SettingsError, read_settings
from tasks.trail.audit_trail import audit_trail
from tasks.trail.history import run_history
from tasks.trail.runs import RunOptions

_TRIGGER: Final = "scripts.sync_now"


def main() -> int:
    """Sync everything; 0 when every item is in, 1 when not, 2 without a run, 130 at Ctrl-C."""
    arguments = _parser().parse_args()
    exempt_loopback_from_proxies()
    try:
        return asyncio.run(sync_here(RunOptions(arguments.trigger, tuple(ENTITY_NAMES))))
    except (SettingsError, MongoError) as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m scripts.sync_now", description=__doc__)
    parser.add_argument(
        "--trigger",
        default=_TRIGGER,
        help="who or what asks for the sync, for the audit trail; default: %(default)s",
    )
    return parser


async def sync_here(options: RunOptions) -> int:
    """Sync in this process, and tell what comes of it; returns the exit status.

    Raises:
        SettingsError: a setting is missing or wrong; nothing was done.
        MongoError: MongoDB is away, or does not let us; nothing was done.
    """
    settings = read_settings()
    require_prefect_api()
    await asyncio.to_thread(audit_trail, settings)
    parameters = options.as_parameters()
    try:
        async with get_client() as prefect:
            flow_run = await prefect.create_flow_run(admin_sync, parameters=parameters)
    except (httpx.HTTPError, JSONDecodeError) as error:
        print(f"{fault_in_words(error)}.", file=sys.stderr)
        return 2
    sync = asyncio.ensure_future(
        run_flow_async(
            cast(Flow[..., Any], admin_sync),
            flow_run=flow_run,
            parameters=parameters,
            return_type="state",
        )
    )
    await show_until_done(sync, run_history(settings), str(flow_run.id), options.entities)
    try:
        state = cast(State[Any], await sync)
    except (Abort, httpx.HTTPError, RuntimeError) as left:
        print(f"The sync did not come to its end here: {_in_words(left)}", file=sys.stderr)
        return 1
    return await asyncio.to_thread(tell_outcome, settings, flow_run, state)


def _in_words(error: BaseException) -> str:
    """Return why Prefect left a run; it wraps what its client met when it first asks the server."""
    met = error.__cause__ or error
    return f"{fault_in_words(met)}." if isinstance(met, httpx.HTTPError) else str(error)


if __name__ == "__main__":
    sys.exit(main())
