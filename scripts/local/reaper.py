"""Ends the parts of a process that is gone, however it went: even a SIGKILL leaves none behind.

The process tells its reaper of them, each the leader of a process group, through a pipe. Its end is
the end of the pipe.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import cache

STOP_SECONDS = 10.0
"""How long what gets SIGTERM may take before it gets SIGKILL."""
_POLL_SECONDS = 0.05
_BEGUN, _ENDED = "+", "-"


@contextmanager
def ends_with_us(leader: int) -> Iterator[None]:
    """Have a process group ended, should this process be gone before the block ends."""
    _tell(f"{_BEGUN}{leader}\n")
    try:
        yield
    finally:
        _tell(f"{_ENDED}{leader}\n")


def terminate_group(leader: int) -> None:
    """Ask a process group to end, also what of it is stopped."""
    signal_group(leader, signal.SIGTERM)
    signal_group(leader, signal.SIGCONT)


def signal_group(leader: int, number: int) -> bool:
    """Send a signal to a process group; False when there is none any more."""
    try:
        os.killpg(leader, number)
    except (ProcessLookupError, PermissionError):
        return False
    return True


def _tell(line: str) -> None:
    with suppress(BrokenPipeError):
        os.write(_reaper(), line.encode())


@cache
def _reaper() -> int:
    """Start the reaper, as nobody's child; returns our end of the pipe."""
    its_end, our_end = os.pipe()
    subprocess.run(
        [sys.executable, "-I", "-S", __file__],
        cwd="/",
        stdin=its_end,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        check=True,
    )
    os.close(its_end)
    return our_end


def main() -> None:
    """Reap what is left when the pipe ends, the last first."""
    if os.fork():
        return
    for leader in reversed(left(sys.stdin)):
        end_group(leader)


def left(lines: Iterable[str]) -> list[int]:
    """Return the leaders that have begun and not ended, the first first."""
    leaders: list[int] = []
    for line in lines:
        change = leaders.append if line.startswith(_BEGUN) else leaders.remove
        change(int(line[1:]))
    return leaders


def end_group(leader: int) -> None:
    """Terminate a process group, and kill what of it is left."""
    deadline = time.monotonic() + STOP_SECONDS
    terminate_group(leader)
    while signal_group(leader, 0) and time.monotonic() < deadline:
        time.sleep(_POLL_SECONDS)
    signal_group(leader, signal.SIGKILL)


if __name__ == "__main__":
    main()
