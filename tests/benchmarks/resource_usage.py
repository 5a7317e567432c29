"""Measures the time, CPU time and memory of a contender, inside its process."""

import re
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

Result = TypeVar("Result")

_PROCESS_STATUS: Final = Path("/proc/self/status")
_RESIDENT_PEAK: Final = re.compile(r"^VmHWM:\s+(\d+) kB$", re.MULTILINE)
_KILOBYTE: Final = 1024


@dataclass(frozen=True)
class ResourceUsage:
    """Resources that this process used; imports count in `peak_rss_bytes` only."""

    seconds: float
    cpu_seconds: float
    peak_rss_bytes: int


def measured(work: Callable[[], Result]) -> tuple[ResourceUsage, Result]:
    """Do the work and measure it."""
    started, cpu_started = time.perf_counter(), time.process_time()
    result = work()
    seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - cpu_started
    return ResourceUsage(seconds, cpu_seconds, _peak_rss_bytes()), result


def _peak_rss_bytes() -> int:
    # On Linux ru_maxrss starts at what the parent process had when it started this one.
    if _PROCESS_STATUS.exists():
        peak = _RESIDENT_PEAK.search(_PROCESS_STATUS.read_text())
        if peak is not None:
            return int(peak[1]) * _KILOBYTE
    unit = 1 if sys.platform == "darwin" else _KILOBYTE
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
