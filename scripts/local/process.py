"""Starts a local child process, waits until it is ready, and leaves nothing of it running."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Final, NoReturn
from urllib.error import HTTPError
from urllib.request import ProxyHandler, build_opener

from scripts.local.reaper import STOP_SECONDS, ends_with_us, signal_group, terminate_group

LOCALHOST: Final = "127.0.0.1"
_POLL_SECONDS: Final = 0.05
_WATCH_SECONDS: Final = 0.5
_LOG_LINES_SHOWN: Final = 20

_opener: Final = build_opener(ProxyHandler({}))
"""Reaches this machine whatever proxy the environment names."""


class StartFailed(RuntimeError):
    """A local process did not start or stay up; the message is for the person who started it."""


@dataclass(frozen=True, eq=False)
class _Part:
    """A child process, and where in its log it began to write."""

    name: str
    process: subprocess.Popen[bytes]
    log_path: Path
    log_start: int

    def end_of_log(self) -> str:
        with self.log_path.open(encoding="utf-8", errors="replace") as log:
            log.seek(self.log_start)
            lines = deque(log, _LOG_LINES_SHOWN)
        if not lines:
            return f" It logged nothing ({self.log_path})."
        return f" The end of {self.log_path}:\n{''.join(lines).rstrip()}"


_parts: Final[set[_Part]] = set()
"""What this process has started, is ready, and is to stay up."""


def free_port() -> int:
    """A port of 127.0.0.1 that nothing listens on now."""
    with socket.socket() as listener:
        listener.bind((LOCALHOST, 0))
        port: int = listener.getsockname()[1]
        return port


def is_free(port: int) -> bool:
    """Whether nothing listens on a port of 127.0.0.1 now."""
    return _why_taken(port) is None


def require_free(port: int, *, name: str) -> None:
    """Refuse a port of 127.0.0.1 that is taken, before another server answers in name's place."""
    if why := _why_taken(port):
        raise StartFailed(f"{name} can't listen on {LOCALHOST}:{port}: {why}.")


def _why_taken(port: int) -> str | None:
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((LOCALHOST, port))
        except OSError as error:
            return error.strerror
    return None


def answers(url: str, *, within_seconds: float) -> bool:
    """Whether an HTTP server of this machine answers at `url` by then, whatever it says."""
    try:
        with _opener.open(url, timeout=within_seconds):
            return True
    except HTTPError:
        return True
    except OSError:
        return False


def make_folder(path: Path) -> Path:
    """Make a folder for what a local process writes, unless it is there.

    Raises:
        StartFailed: it can't be made or written to.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StartFailed(f"The folder {path} can't be made: {error.strerror}.") from None
    if not os.access(path, os.W_OK | os.X_OK):
        raise StartFailed(f"The folder {path} can't be written to: let this user do so.")
    return path


@contextmanager
def running(
    command: Sequence[str],
    *,
    name: str,
    ready: Callable[[], bool],
    env: Mapping[str, str] | None = None,
    log_path: Path,
    timeout_seconds: float = 60.0,
    cwd: Path | None = None,
) -> Iterator[subprocess.Popen[bytes]]:
    """Run `command` in its own process group, from the time it is ready until the block ends.

    It ends with this process, too, however that ends.

    Raises:
        StartFailed: it can't be started, ends at once or is not ready in time.
    """
    part = _start(command, name, log_path, env=env, cwd=cwd)
    with ends_with_us(part.process.pid):
        try:
            reason = _wait_until_ready(part.process, ready, timeout_seconds)
            if reason is not None:
                raise StartFailed(f"{name} {reason}.{part.end_of_log()}")
            _parts.add(part)
            yield part.process
        finally:
            _parts.discard(part)
            _stop(part.process)


def _start(
    command: Sequence[str],
    name: str,
    log_path: Path,
    *,
    env: Mapping[str, str] | None,
    cwd: Path | None,
) -> _Part:
    make_folder(log_path.parent)
    try:
        log = log_path.open("ab")
    except OSError as error:
        raise StartFailed(f"{name} can't log to {log_path}: {error.strerror}.") from None
    with log:
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
    return _Part(name, process, log_path, log_start)


def serve_until_stopped(server: AbstractContextManager[str]) -> int:
    """A script's main: print the server's address, keep it up until Ctrl-C or SIGTERM."""
    heed_signals()
    try:
        with server as address:
            print(address, flush=True)
            wait_until_a_part_ends()
    except KeyboardInterrupt:
        return 0
    except StartFailed as failure:
        print(failure, file=sys.stderr)
        return 1


def heed_signals() -> None:
    """Let Ctrl-C, SIGTERM and the closing of the terminal raise KeyboardInterrupt.

    Whoever starts this process from a script with `&` has it ignore SIGINT, and all its children:
    that ends here. The closing of the terminal stays ignored where it is: nohup is for that.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        signal.signal(signal.SIGHUP, _hang_up)


def _hang_up(number: int, _frame: FrameType | None) -> NoReturn:
    signal.signal(number, signal.SIG_IGN)  # the shell sends it once more
    raise KeyboardInterrupt


def wait_until_a_part_ends() -> NoReturn:
    """Wait until something that is `running` ends by itself; what is merely stopped has not ended.

    Raises:
        StartFailed: one has ended by itself; the message names it.
    """
    while True:
        for part in _parts:
            if part.process.poll() is not None:
                raise StartFailed(
                    f"{part.name} has ended by itself ({_exit_in_words(part.process)})."
                    f"{part.end_of_log()}"
                )
        time.sleep(_WATCH_SECONDS)


def _exit_in_words(process: subprocess.Popen[bytes]) -> str:
    code = process.returncode
    return f"exit code {code}" if code >= 0 else signal.Signals(-code).name


def _wait_until_ready(
    process: subprocess.Popen[bytes], ready: Callable[[], bool], timeout_seconds: float
) -> str | None:
    """None once the process is ready, else why it never will be."""
    deadline = time.monotonic() + timeout_seconds
    while time.monotonic() < deadline:
        answered = ready()
        if process.poll() is not None:
            return f"ended at once ({_exit_in_words(process)})"
        if answered:
            return None
        time.sleep(_POLL_SECONDS)
    return f"was not ready within {timeout_seconds:g} seconds"


def _stop(process: subprocess.Popen[bytes]) -> None:
    try:
        terminate_group(process.pid)
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        pass
    finally:
        signal_group(process.pid, signal.SIGKILL)
        process.wait()
