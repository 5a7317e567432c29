"""Runs a sync on this machine, with local parts for whatever the settings don't name."""

import argparse
import os
import subprocess
import sys
from contextlib import ExitStack, suppress
from typing import Final

from rich.console import Console

from deployments.loopback import exempt_loopback_from_proxies
from scripts.local.parts import start_missing_parts
from scripts.local.process import StartFailed, heed_signals, wait_until_a_part_ends
from scripts.local.reaper import ends_with_us
from tasks.mongo_errors import MongoError
from tasks.settings import SettingsError, read_settings

_console: Final = Console()


def main() -> int:
    """Start what is missing, sync once, stop what was started; 0 when every item is in."""
    arguments = _parser().parse_args()
    heed_signals()
    exempt_loopback_from_proxies()
    try:
        with ExitStack() as parts:
            started = start_missing_parts(parts)
            read_settings()
            exit_status = _sync_once()
            if arguments.keep:
                _wait_for_interrupt()
            elif "PREFECT_API_URL" in started:
                _console.print("The dashboard stops now; ./scripts/run --keep leaves it up.")
            return exit_status
    except (StartFailed, SettingsError, MongoError) as failure:
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


def _sync_once() -> int:
    """Sync in a process of its own, which reads the settings from scratch."""
    quiet = {"PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL"}
    sync = subprocess.Popen(
        [sys.executable, "-m", "scripts.sync_now", "--trigger", "scripts/run"],
        env={**os.environ, **quiet},
        start_new_session=True,
    )
    with ends_with_us(sync.pid):
        try:
            return sync.wait()
        except KeyboardInterrupt:
            sync.terminate()
            sync.wait()
            raise


def _wait_for_interrupt() -> None:
    with suppress(KeyboardInterrupt):
        _console.print("\nEverything stays up until Ctrl-C.")
        wait_until_a_part_ends()


if __name__ == "__main__":
    sys.exit(main())
