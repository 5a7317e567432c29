"""Opens every door on this machine: Prefect server, deployments, worker and REST API."""

import argparse
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

from rich.console import Console

from deployments.loopback import exempt_loopback_from_proxies
from scripts.local.parts import LOCAL, SERVERS, named_settings, start_missing_parts
from scripts.local.process import (
    StartFailed,
    answers,
    make_folder,
    require_free,
    running,
    serve_until_stopped,
)
from scripts.local.started_servers import Server, announced
from tasks.mongo_errors import MongoError
from tasks.settings import (
    SettingsError,
    read_api_settings,
    read_environment_settings,
    read_settings,
)

_REPOSITORY: Final = Path(__file__).parents[2]
_console: Final = Console()


def main() -> int:
    """Serve until Ctrl-C; 2 when something did not start."""
    arguments = _parser().parse_args()
    exempt_loopback_from_proxies()
    try:
        return serve_until_stopped(_doors(arguments.prefect_port))
    except (SettingsError, MongoError) as failure:
        print(failure, file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="scripts/serve", description=__doc__)
    parser.add_argument(
        "--prefect-port",
        type=int,
        default=4200,
        help="port of the Prefect server that is started, 0 for a free one; default: %(default)s",
    )
    return parser


@contextmanager
def _doors(prefect_port: int) -> Iterator[str]:
    with ExitStack() as parts:
        started = start_missing_parts(parts, prefect_port or None)
        read_settings()
        with _console.status("Making the deployments"):
            _run_module("deployments.deploy")
        with _console.status("Starting the worker and the REST API"):
            parts.enter_context(_worker())
            api_url = parts.enter_context(_rest_api())
        parts.enter_context(announced(started, SERVERS))
        yield _told(api_url, started)


def _run_module(name: str) -> None:
    """Run a module in a process of its own, which reads the settings from scratch."""
    command = subprocess.run(
        [sys.executable, "-m", name],
        cwd=_REPOSITORY,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
        start_new_session=True,
    )
    if command.returncode:
        raise StartFailed(command.stderr.strip())


@contextmanager
def _worker() -> Iterator[None]:
    pool, log_path = read_environment_settings().work_pool, make_folder(LOCAL) / "worker.log"
    log_path.unlink(missing_ok=True)
    with running(
        [sys.executable, "-m", "prefect", "worker", "start", "--pool", pool],
        name="The worker",
        ready=lambda: "started!" in log_path.read_text(errors="replace"),
        log_path=log_path,
        timeout_seconds=120.0,
        cwd=_REPOSITORY,
    ):
        yield


@contextmanager
def _rest_api() -> Iterator[str]:
    settings = read_api_settings()
    require_free(settings.port, name="The REST API (ADMIN_API_PORT)")
    base_url = f"http://{settings.host}:{settings.port}/api"
    with running(
        [sys.executable, "-m", "deployments.api"],
        name="The REST API",
        ready=lambda: answers(f"{base_url}/health", within_seconds=5),
        log_path=LOCAL / "api.log",
        timeout_seconds=120.0,
        cwd=_REPOSITORY,
    ):
        yield base_url


def _told(api_url: str, started: Mapping[Server, str]) -> str:
    prefect_api_url = named_settings()["PREFECT_API_URL"]
    commands = _commands(api_url, {"PREFECT_API_URL": prefect_api_url, **started})
    return "\n".join(
        [
            f"Dashboard      {prefect_api_url.removesuffix('/api')}/deployments",
            f"REST API       {api_url}/docs",
            f"Logs           {LOCAL}",
            "",
            "Start a sync in another shell, in whichever of these ways:",
            "",
            *commands,
            "",
            "Everything stays up until Ctrl-C.",
        ]
    )


def _commands(api_url: str, servers: Mapping[Server, str]) -> list[str]:
    """Return lines that work when they are pasted into a shell; they hold no secret."""
    full = read_environment_settings().named("full")
    has_token = read_api_settings().token is not None
    token = ' -H "Authorization: Bearer $ADMIN_API_TOKEN"' if has_token else ""
    return [
        shlex.join(["cd", str(_REPOSITORY)]),
        ". .venv/bin/activate",
        *(f"export {setting}={shlex.quote(address)}" for setting, address in servers.items()),
        "./scripts/sync",
        f"prefect deployment run admin-sync/{full} --watch",
        f"curl -X POST{token} {api_url}/admin/sync/run",
    ]


if __name__ == "__main__":
    sys.exit(main())
