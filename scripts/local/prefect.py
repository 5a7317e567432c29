"""Runs a Prefect server with its dashboard on this machine, for tests and for a first try."""

import argparse
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import certifi

from scripts.local.process import (
    LOCALHOST,
    answers,
    free_port,
    make_folder,
    require_free,
    running,
    serve_until_stopped,
)

_SERVER: Final = Path(__file__).with_name("prefect_on_sqlite.py")
_DEFAULT_HOME: Final = Path(__file__).parents[2] / ".local" / "prefect"

_SERVER_SETTINGS: Final = {
    # On SQLite, a write of task runs or events collides with the requests that come meanwhile,
    # which the client repeats two seconds later: so both are written seldom, and many at once.
    "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_BATCH_SIZE": "200",
    "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_READ_BATCH_SIZE": "200",
    "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_FLUSH_INTERVAL": "1",
    "PREFECT_SERVER_SERVICES_EVENT_PERSISTER_BATCH_SIZE": "500",
    # Slots that a killed process held are free when their lease ends, even after a restart.
    "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": (
        "prefect.server.concurrency.lease_storage.filesystem"
    ),
    "PREFECT_SERVER_SERVICES_REPOSSESSOR_LOOP_SECONDS": "2",
    # Flow runs that ended 90 days ago go; the sweeps are 720 a day.
    "PREFECT_SERVER_SERVICES_DB_VACUUM_ENABLED": "events,flow_runs",
    # Else a web page may do here what an operator may, without seeing the answers.
    "PREFECT_SERVER_CSRF_PROTECTION_ENABLED": "true",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
    "DO_NOT_TRACK": "1",
}
"""What the shell sets, stays."""
_CLIENT_SETTINGS: Final = ("PREFECT_API_URL", "PREFECT_API_KEY", "PREFECT_PROFILE")
"""Settings of a shell that uses another server; here they would point this one at it."""


def one_authority(folder: Path) -> Path:
    """Make a file with one certificate authority, for clients of a server that speaks plain HTTP.

    A run has a dozen of Prefect's clients. Each loads all authorities of such a file anew, and with
    those that are trusted by default that is a sixth of the time of a short sync.
    """
    first, end, _ = certifi.contents().partition("-----END CERTIFICATE-----")
    path = folder / "one-authority.pem"
    path.write_text(first + end)
    return path


@contextmanager
def local_prefect_server(home: Path, port: int | None = None) -> Iterator[str]:
    """Run a Prefect server on 127.0.0.1 with its data in `home`; yields its API URL."""
    if port is None:
        port = free_port()
    else:
        require_free(port, name="The Prefect server")
    home = make_folder(home.resolve())
    api_url = f"http://{LOCALHOST}:{port}/api"
    command = [sys.executable, "-P", str(_SERVER), "server", "start"]
    with running(
        [*command, "--host", LOCALHOST, "--port", str(port)],
        name="The Prefect server",
        ready=lambda: answers(f"{api_url}/health", within_seconds=2),
        env=_environment(home, port, api_url),
        log_path=home / "server.log",
        timeout_seconds=180.0,
        cwd=home,
    ):
        yield api_url


def _environment(home: Path, port: int, api_url: str) -> dict[str, str]:
    inherited = {name: value for name, value in os.environ.items() if name not in _CLIENT_SETTINGS}
    return {
        **_SERVER_SETTINGS,
        **inherited,
        "PREFECT_HOME": str(home),
        "PREFECT_SERVER_UI_API_URL": api_url,
        "PREFECT_SERVER_CORS_ALLOWED_ORIGINS": _own_origins(port),
    }


def _own_origins(port: int) -> str:
    """Return the dashboard's origins; by default Prefect lets every web page see the answers."""
    return f"http://{LOCALHOST}:{port},http://localhost:{port}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, help="default: a free one")
    parser.add_argument("--home", type=Path, default=_DEFAULT_HOME, help="default: %(default)s")
    arguments = parser.parse_args()
    return serve_until_stopped(local_prefect_server(arguments.home, arguments.port))


if __name__ == "__main__":
    sys.exit(main())
