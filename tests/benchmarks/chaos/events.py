"""The violent events: what is killed, cut or stalled in the midst of a sync, and brought back."""

import os
import signal
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from enum import StrEnum
from typing import Final

from tests.benchmarks.chaos.parts import Parts

HUB_DOWN_SECONDS: Final = 5.0
STALL_SECONDS: Final = 3.0
AWAY_SECONDS: Final = 2.0
"""How long a killed server stays away, beside the time of its start."""


class Event(StrEnum):
    """One kind of violence."""

    FLOW_RUN_KILLED = "flow-run-killed"
    WORKER_KILLED = "worker-killed"
    MACHINE_LOST = "machine-lost"
    PREFECT_KILLED = "prefect-killed"
    MONGOD_KILLED = "mongod-killed"
    HUB_DOWN = "hub-down"
    HUB_STALLED = "hub-stalled"
    PREFECT_STALLED = "prefect-stalled"
    MONGOD_STALLED = "mongod-stalled"

    def strike(self, parts: Parts, flow_run_id: str) -> None:
        """Do it to the parts and to the flow run's process; at the return all parts are back."""
        _DEEDS[self](parts, flow_run_id)


def _kill_flow_run(parts: Parts, flow_run_id: str) -> None:
    for process in parts.processes_of(flow_run_id):
        with suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGKILL)


def _kill_worker(parts: Parts, _: str) -> None:
    parts.worker.kill()
    parts.worker.start()


def _lose_machine(parts: Parts, flow_run_id: str) -> None:
    processes = parts.processes_of(flow_run_id)
    parts.worker.kill()
    for process in processes:
        with suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGKILL)
    parts.worker.start()


def _kill_prefect(parts: Parts, _: str) -> None:
    parts.prefect.kill()
    time.sleep(AWAY_SECONDS)
    parts.prefect.start()


def _kill_mongod(parts: Parts, _: str) -> None:
    parts.mongodb.kill()
    time.sleep(AWAY_SECONDS)
    parts.mongodb.start()


def _take_hub_down(parts: Parts, _: str) -> None:
    parts.hub.close()
    time.sleep(HUB_DOWN_SECONDS)
    parts.hub.open()


_DEEDS: Final[Mapping[Event, Callable[[Parts, str], None]]] = {
    Event.FLOW_RUN_KILLED: _kill_flow_run,
    Event.WORKER_KILLED: _kill_worker,
    Event.MACHINE_LOST: _lose_machine,
    Event.PREFECT_KILLED: _kill_prefect,
    Event.MONGOD_KILLED: _kill_mongod,
    Event.HUB_DOWN: _take_hub_down,
    Event.HUB_STALLED: lambda parts, _: parts.hub.stall(STALL_SECONDS),
    Event.PREFECT_STALLED: lambda parts, _: parts.prefect.stall(STALL_SECONDS),
    Event.MONGOD_STALLED: lambda parts, _: parts.mongodb.stall(STALL_SECONDS),
}
