"""Starts a local child process, waits until it is ready, and leaves nothing of it running."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Final

LOCALHOST: Final = "127.0.0.1"
_POLL_SECONDS: Final = 0.05
_STOP_SECONDS: Final = 10.0
_LOG_LINES_SHOWN: Final = 20


class StartFailed(RuntimeError):
    """A local process did not start; the message is for the person who started it."""


def free_port() -> int:
    """A port of 127.0.0.1 that nothing listens on now."""
    with socket.socket() as listener:
        listener.bind((LOCALHOST, 0))
        port: int = listener.getsockname()[1]
        return port


def require_free(port: int, *, name: str) -> None:
    """Refuse a port of 127.0.0.1 that is taken, before another server answers in name's place."""
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((LOCALHOST, port))
        except OSError as error:
            raise StartFailed(
                f"{name} can't listen on {LOCALHOST}:{port}: {error.strerror}."
            ) from error


def answers(url: str, *, within_seconds: float) -> bool:
    """Whether an HTTP server gives a success at `url` by then."""
    try:
        with urllib.request.urlopen(url, timeout=within_seconds):
            return True
    except OSError:
        return False


@contextmanager
def running(
    command: Sequence[str],
    *,
    name: str,
    ready: Callable[[], bool],
    env: Mapping[str, str] | None = None,
    log_path: Path,
    timeout_seconds: float = 30.0,
    cwd: Path | None = None,
) -> Iterator[subprocess.Popen[bytes]]:
    """Run `command` in its own process group, from the time it is ready until the block ends."""
    log_path.parent.mkdir(parents=True, exist_ok=True)
    with log_path.open("ab") as log:
        log_start = log.tell()
        try:
            process = subprocess.Popen(
                command,
                env=env,
                cwd=cwd,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        except OSError as error:
            raise StartFailed(f"{name} can't be started: {error}.") from error
    try:
        reason = _wait_until_ready(process, ready, timeout_seconds)
        if reason is not None:
            raise StartFailed(f"{name} {reason}.{_log_since(log_path, log_start)}")
        yield process
    finally:
        _stop(process)


def serve_until_stopped(server: AbstractContextManager[str]) -> int:
    """A script's main: print the server's address, keep it up until Ctrl-C or SIGTERM."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with server as address:
            print(address, flush=True)
            _wait_for_end_of_child()
            raise StartFailed(f"The server at {address} has ended by itself.")
    except KeyboardInterrupt:
        return 0
    except StartFailed as failure:
        print(failure, file=sys.stderr)
        return 1


def _wait_for_end_of_child() -> None:
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.pause()


def _wait_until_ready(
    process: subprocess.Popen[bytes], ready: Callable[[], bool], timeout_seconds: float
) -> str | None:
    """None once the process is ready, else why it never will be."""
    deadline = time.monotonic() + timeout_seconds
    while time.monotonic() < deadline:
        answered = ready()
        if process.poll() is not None:
            return f"ended at once with exit code {process.returncode}"
        if answered:
            return None
        time.sleep(_POLL_SECONDS)
    return f"was not ready within {timeout_seconds:g} seconds"


def _log_since(log_path: Path, start: int) -> str:
    with log_path.open("rb") as log:
        log.seek(start)
        lines = log.read().decode(errors="replace").splitlines()
    if not lines:
        return f" It logged nothing ({log_path})."
    return "\n".join([f" The end of {log_path}:", *lines[-_LOG_LINES_SHOWN:]])


def _stop(process: subprocess.Popen[bytes]) -> None:
    try:
        _signal_group(process, signal.SIGTERM)
        process.wait(_STOP_SECONDS)
    except subprocess.TimeoutExpired:
        pass
    finally:
        _signal_group(process, signal.SIGKILL)
        process.wait()


def _signal_group(process: subprocess.Popen[bytes], signal_number: signal.Signals) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal_number)
