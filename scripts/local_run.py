"""Runs a sync on this machine, with local parts for whatever the settings don't name."""

import argparse
import os
import secrets
import signal
import subprocess
import sys
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Final

from dotenv import dotenv_values
from pydantic import SecretStr
from rich.console import Console

from scripts.local_hub import LocalHub, upsert_urls
from scripts.local_mongod import local_mongod
from scripts.local_prefect import local_prefect_server
from scripts.local_process import StartFailed
from scripts.seed_source import seed_source
from tasks.entities import ENTITY_TYPES
from tasks.mongo import MongoUnavailable, database
from tasks.settings import SettingsError, read_mongo_settings, read_settings

_LOCAL: Final = Path(__file__).parents[1] / ".local"
_console: Final = Console()


def main() -> int:
    """Start what is missing, sync once, stop what was started; 0 when every item is in."""
    arguments = _parser().parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with ExitStack() as parts:
            dashboard_is_ours = _start_missing_parts(parts)
            read_settings()
            exit_status = _sync_once()
            if arguments.keep:
                _wait_for_interrupt()
            elif dashboard_is_ours:
                _console.print("The dashboard stops now; ./scripts/run --keep leaves it up.")
            return exit_status
    except (StartFailed, SettingsError, MongoUnavailable) as failure:
        print(failure, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="scripts/run", description=__doc__)
    parser.add_argument(
        "--keep",
        action="store_true",
        help="leave what was started up until Ctrl-C, to look at the dashboard",
    )
    return parser


def _start_missing_parts(parts: ExitStack) -> bool:
    """Start a part for each setting that neither the environment nor `.env` names.

    Returns whether the Prefect server is one of them.
    """
    settings = {**dotenv_values(".env"), **os.environ}
    named = {name: value for name, value in settings.items() if value}
    if "MONGODB_URI" not in named:
        _start_mongodb(parts)
    if named.keys().isdisjoint(entity_type.url_variable for entity_type in ENTITY_TYPES):
        _start_hub(parts, named.get("ADMIN_SYNC_TOKEN") or secrets.token_urlsafe())
    if "PREFECT_API_URL" in named:
        return False
    _start_prefect(parts)
    return True


def _start_mongodb(parts: ExitStack) -> None:
    with _console.status("Starting MongoDB"):
        uri = parts.enter_context(local_mongod(_LOCAL / "mongodb"))
    os.environ["MONGODB_URI"] = uri
    inserted = seed_source(read_mongo_settings())
    _console.print(f"MongoDB        {uri} ({inserted} of the seed's documents were new)")


def _start_hub(parts: ExitStack, token: str) -> None:
    settings = read_mongo_settings()
    hub = LocalHub(
        token=SecretStr(token),
        database=database(settings).client[f"{settings.mongodb_database}_hub"],
    )
    parts.enter_context(hub)
    os.environ["ADMIN_SYNC_TOKEN"] = token
    os.environ.update(upsert_urls(hub.base_url))
    _console.print(f"Stage 1 hub    {hub.base_url}")


def _start_prefect(parts: ExitStack) -> None:
    with _console.status("Starting the Prefect server"):
        api_url = parts.enter_context(local_prefect_server(_LOCAL / "prefect"))
    os.environ["PREFECT_API_URL"] = api_url
    _console.print(f"Prefect        {api_url.removesuffix('/api')}")


def _sync_once() -> int:
    """Sync in a process of its own, which reads the settings from scratch."""
    quiet = {"PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL"}
    sync = subprocess.Popen(
        [sys.executable, "-m", "scripts.sync_now"],
        env={**os.environ, **quiet},
        start_new_session=True,
    )
    try:
        return sync.wait()
    except KeyboardInterrupt:
        sync.terminate()
        sync.wait()
        raise


def _wait_for_interrupt() -> None:
    with suppress(KeyboardInterrupt):
        _console.print("\nEverything stays up until Ctrl-C.")
        signal.pause()


if __name__ == "__main__":
    sys.exit(main())
