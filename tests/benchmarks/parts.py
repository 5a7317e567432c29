"""The servers that all measured runs share: a mongod and a Prefect server."""

import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import psutil  # type: ignore[import-untyped]

from scripts.local.mongod import local_mongod
from scripts.local.prefect import local_prefect_server

_WINDOW_SECONDS: Final = 0.5
_IDLE_SHARE: Final = 0.15
"""Share of one core that an idle Prefect server and mongod stay below together."""
_LONGEST_WAIT_SECONDS: Final = 60.0
_SETTING_PREFIXES: Final = ("ADMIN_", "MONGODB_", "PREFECT_")


@dataclass(frozen=True)
class Part:
    """The address and the process of a server that the benchmark has started."""

    address: str
    pid: int

    def cpu_seconds(self) -> float:
        return cpu_seconds_of(self.pid)


@dataclass(frozen=True)
class Parts:
    """The servers and the scratch folder of all measured runs."""

    mongodb: Part
    prefect: Part
    scratch: Path

    def wait_until_idle(self, idle_seconds: float) -> None:
        """Wait until both servers have been idle for so long, a minute at most."""
        deadline = time.monotonic() + _LONGEST_WAIT_SECONDS
        idle_for = 0.0
        while idle_for < idle_seconds and time.monotonic() < deadline:
            before = self._cpu_seconds()
            time.sleep(_WINDOW_SECONDS)
            is_idle = self._cpu_seconds() - before < _IDLE_SHARE * _WINDOW_SECONDS
            idle_for = idle_for + _WINDOW_SECONDS if is_idle else 0.0

    def _cpu_seconds(self) -> float:
        return self.mongodb.cpu_seconds() + self.prefect.cpu_seconds()


@contextmanager
def benchmark_parts() -> Iterator[Parts]:
    """Run a mongod and a Prefect server with their data in a temporary folder."""
    with tempfile.TemporaryDirectory(prefix="benchmark-") as folder:
        scratch = Path(folder)
        with (
            as_part(local_mongod(scratch / "mongodb")) as mongodb,
            as_part(local_prefect_server(scratch / "prefect")) as prefect,
        ):
            yield Parts(mongodb, prefect, scratch)


def environment_without_settings() -> dict[str, str]:
    """Return the variables of this process without the sync's, MongoDB's and Prefect's settings."""
    return {
        name: value for name, value in os.environ.items() if not name.startswith(_SETTING_PREFIXES)
    }


def cpu_seconds_of(pid: int) -> float:
    """Return the CPU time of a process and its descendants, children that have ended included."""
    root = psutil.Process(pid)
    ended = root.cpu_times().children_user + root.cpu_times().children_system
    living = [root, *root.children(recursive=True)]
    return float(ended + sum(t.user + t.system for t in (p.cpu_times() for p in living)))


def cpu_seconds_of_machine() -> float:
    """Return the CPU time of all processes since the machine's start."""
    times = psutil.cpu_times()
    return float(times.user + times.system)


@contextmanager
def as_part(server: AbstractContextManager[str]) -> Iterator[Part]:
    """Enter a server's context, which yields its address, and find its process."""
    before = _own_children()
    with server as address:
        (pid,) = _own_children() - before
        yield Part(address, pid)


def _own_children() -> set[int]:
    return {child.pid for child in psutil.Process().children()}
