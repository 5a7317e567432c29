"""The parts that all measured runs share: a mongod and a Prefect server of the benchmark's own."""

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
_QUIET_SHARE: Final = 0.15
"""Of one core: what a Prefect server and a mongod without work stay below."""
_PATIENCE_SECONDS: Final = 60.0
_FOREIGN: Final = ("ADMIN_", "MONGODB_", "PREFECT_")


@dataclass(frozen=True)
class Part:
    """A server that the benchmark has started, where it is and which process it is."""

    address: str
    pid: int

    def cpu_seconds(self) -> float:
        return cpu_seconds_of(self.pid)


@dataclass(frozen=True)
class Parts:
    """What there is for the contenders to work with."""

    mongodb: Part
    prefect: Part
    scratch: Path

    def settle(self, quiet_seconds: float) -> None:
        """Wait until both servers have had next to nothing to do for so long."""
        deadline = time.monotonic() + _PATIENCE_SECONDS
        quiet_for = 0.0
        while quiet_for < quiet_seconds and time.monotonic() < deadline:
            before = self._cpu_seconds()
            time.sleep(_WINDOW_SECONDS)
            is_quiet = self._cpu_seconds() - before < _QUIET_SHARE * _WINDOW_SECONDS
            quiet_for = quiet_for + _WINDOW_SECONDS if is_quiet else 0.0

    def _cpu_seconds(self) -> float:
        return self.mongodb.cpu_seconds() + self.prefect.cpu_seconds()


@contextmanager
def benchmark_parts() -> Iterator[Parts]:
    """Run a mongod and a Prefect server with their data in a folder that is gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="benchmark-") as folder:
        scratch = Path(folder)
        with (
            as_part(local_mongod(scratch / "mongodb")) as mongodb,
            as_part(local_prefect_server(scratch / "prefect")) as prefect,
        ):
            yield Parts(mongodb, prefect, scratch)


def environment_without_settings() -> dict[str, str]:
    """Return the variables of this process but for this machine's own settings."""
    return {name: value for name, value in os.environ.items() if not name.startswith(_FOREIGN)}


def cpu_seconds_of(pid: int) -> float:
    """Return the CPU time of a process, of its children, and of those that have ended."""
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
    """Enter a server's context, which yields its address, and find out its process."""
    before = _own_children()
    with server as address:
        (pid,) = _own_children() - before
        yield Part(address, pid)


def _own_children() -> set[int]:
    return {child.pid for child in psutil.Process().children()}
