"""The events in the midst of a sync: a process or server is killed or stalled, and comes back."""

from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

import psutil  # type: ignore[import-untyped]

from tests.benchmarks.chaos.parts import Parts


class Event(StrEnum):
    """A kind of event; the last two stand for a whole run (`standing.py`)."""

    FLOW_RUN_KILLED = "flow-run-killed"
    WORKER_KILLED = "worker-killed"
    MACHINE_LOST = "machine-lost"
    PREFECT_KILLED = "prefect-killed"
    MONGOD_KILLED = "mongod-killed"
    HUB_DOWN = "hub-down"
    HUB_STALLED = "hub-stalled"
    PREFECT_STALLED = "prefect-stalled"
    MONGOD_STALLED = "mongod-stalled"
    LIMITER = "limiter"
    ENDPOINT_DOWN = "endpoint-down"


@dataclass(frozen=True)
class ScheduledEvent:
    """An event that comes after `at_request` requests to Stage 1 and lasts `seconds`.

    A server that is killed is away for that long, and for the time of its start.
    """

    event: Event
    at_request: int
    seconds: float

    def carry_out(self, parts: Parts, flow_run_id: str) -> None:
        """Carry the event out on the parts or the flow run; returns when all parts are back."""
        match self.event:
            case Event.FLOW_RUN_KILLED:
                _kill(parts.processes_of(flow_run_id))
            case Event.WORKER_KILLED:
                parts.worker.restart(self.seconds)
            case Event.MACHINE_LOST:
                processes = parts.processes_of(flow_run_id)
                parts.worker.kill()
                _kill(processes)
                parts.worker.start()
            case Event.PREFECT_KILLED:
                parts.prefect.restart(self.seconds)
            case Event.MONGOD_KILLED:
                parts.mongodb.restart(self.seconds)
            case Event.HUB_DOWN:
                parts.hub.go_down(self.seconds)
            case Event.HUB_STALLED:
                parts.hub.stall(self.seconds)
            case Event.PREFECT_STALLED:
                parts.prefect.stall(self.seconds)
            case Event.MONGOD_STALLED:
                parts.mongodb.stall(self.seconds)
            case Event.LIMITER | Event.ENDPOINT_DOWN:
                raise ValueError(f"{self.event} has no moment")


def _kill(processes: Iterable[psutil.Process]) -> None:
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.kill()


SECONDS: Final[Mapping[Event, float]] = {
    Event.FLOW_RUN_KILLED: 0.0,
    Event.WORKER_KILLED: 0.0,
    Event.MACHINE_LOST: 0.0,
    Event.PREFECT_KILLED: 2.0,
    Event.MONGOD_KILLED: 2.0,
    Event.HUB_DOWN: 5.0,
    Event.HUB_STALLED: 3.0,
    Event.PREFECT_STALLED: 3.0,
    Event.MONGOD_STALLED: 3.0,
}
"""Duration of each event in the long form."""
LOSING_RECORDS: Final = frozenset(
    {Event.FLOW_RUN_KILLED, Event.WORKER_KILLED, Event.MACHINE_LOST, Event.MONGOD_KILLED}
)
"""Events that may keep records of the sync from MongoDB."""
