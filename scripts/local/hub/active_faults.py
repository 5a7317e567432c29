"""The faults in force, and what they remember of the requests before."""

import threading
import time
from collections.abc import Callable, Iterable
from typing import Final

from pydantic import TypeAdapter

from scripts.local.hub.faults import Fault
from scripts.local.hub.request_log import SeenRequest
from scripts.local.hub.throttle import Throttle

FaultSource = Callable[[SeenRequest], Fault | None]
"""Decides the fault of each request; None means that it is answered as usual."""

_FAULTS: Final = TypeAdapter(tuple[Fault, ...])


class ActiveFaults:
    """A fault source that gives a request the first fault of a list that is for it."""

    def __init__(self, faults: Iterable[Fault]) -> None:
        self._faults = [(fault, _throttle(fault)) for fault in faults]
        self._lock = threading.Lock()

    def __call__(self, seen: SeenRequest) -> Fault | None:
        for fault, throttle in self._faults:
            if fault.matches(seen) and not self._is_let_through(throttle):
                return fault
        return None

    def _is_let_through(self, throttle: Throttle | None) -> bool:
        if throttle is None:
            return False
        with self._lock:
            return throttle.lets_through(time.monotonic())


NO_FAULTS: Final = ActiveFaults(())


def faults_from_json(content: bytes) -> ActiveFaults:
    """Return the faults of a JSON list, which remember nothing yet.

    Raises:
        ValidationError: it is no such list.
    """
    return ActiveFaults(_FAULTS.validate_json(content))


def _throttle(fault: Fault) -> Throttle | None:
    if fault.requests_per_second is None:
        return None
    return Throttle(fault.requests_per_second, fault.burst)
