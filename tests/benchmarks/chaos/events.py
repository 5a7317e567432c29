"""The events in the midst of a sync: a process or server is killed or stalled, and comes back."""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from random import Random
from typing import Final, Self

import psutil  # type: ignore[import-untyped]

from tests.benchmarks.chaos.interventions import (
    LIMIT_DELETED,
    delete_deployments,
    delete_flow_run,
    put_to_sleep,
    suspend,
)
from tests.benchmarks.chaos.ledger import Silence
from tests.benchmarks.chaos.operator import Operator
from tests.benchmarks.chaos.parts import Parts


class Event(StrEnum):
    """A kind of event; a limiter and an endpoint that is down stand for a whole run."""

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
    SUSPENDED = "suspended"
    ASLEEP = "asleep"
    FLOW_RUN_DELETED = "flow-run-deleted"
    DEPLOYMENT_DELETED = "deployment-deleted"
    TWO_ENVIRONMENTS = "two-environments"


@dataclass(frozen=True)
class ScheduledEvent:
    """An event that comes after `at_request` requests to Stage 1 and lasts `seconds`.

    A server that is killed is away for that long, and for the time of its start. `variant` is one
    of several ways in which it may come.
    """

    event: Event
    at_request: int
    seconds: float
    variant: str = ""

    @classmethod
    def drawn(cls, event: Event, seed: int, share: float, items: int) -> Self:
        """Return an event at that share of the requests of a faultless run.

        The same seed makes it as long and as it was before.
        """
        dice = Random(f"{seed}|{event}")
        seconds = (
            dice.uniform(*RANDOM_SECONDS[event]) if event in RANDOM_SECONDS else SECONDS[event]
        )
        variant = dice.choice(VARIANTS[event]) if event in VARIANTS else ""
        return cls(event, round(share * items), round(seconds, 1), variant)

    def carry_out(self, parts: Parts, operator: Operator, flow_run_id: str) -> Sequence[Silence]:
        """Carry the event out on the parts or the flow run; returns when all parts are back.

        Returns who has to be silent afterwards.

        Raises:
            EventFailed: what has to follow it did not.
        """
        match self.event:
            case Event.SUSPENDED:
                return suspend(operator, flow_run_id, self.seconds)
            case Event.ASLEEP:
                return put_to_sleep(parts, operator, flow_run_id, self.variant, self.seconds)
            case Event.FLOW_RUN_DELETED:
                return delete_flow_run(operator, flow_run_id)
            case Event.DEPLOYMENT_DELETED:
                return delete_deployments(operator, self.variant)
            case Event.TWO_ENVIRONMENTS:
                operator.sweep()
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
        return []

    def __str__(self) -> str:
        how = f" ({self.variant})" if self.variant else ""
        lasts = f" for {self.seconds:g} s" if self.event in RANDOM_SECONDS else ""
        return f"{self.event}{how}{lasts} after {self.at_request} requests"


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
    Event.FLOW_RUN_DELETED: 0.0,
    Event.DEPLOYMENT_DELETED: 0.0,
    Event.TWO_ENVIRONMENTS: 0.0,
}
"""Duration of each event in the long form."""
RANDOM_SECONDS: Final[Mapping[Event, tuple[float, float]]] = {
    Event.SUSPENDED: (0.0, 6.0),
    Event.ASLEEP: (0.0, 3.0),
}
"""Shortest and longest duration of other events; sleepers sleep on after the retry has begun."""
VARIANTS: Final[Mapping[Event, Sequence[str]]] = {
    Event.ASLEEP: (LIMIT_DELETED, LIMIT_DELETED, "limit kept"),
    Event.DEPLOYMENT_DELETED: ("full", "changed", "full changed"),
}
LOSING_RECORDS: Final = frozenset(
    {
        Event.FLOW_RUN_KILLED,
        Event.WORKER_KILLED,
        Event.MACHINE_LOST,
        Event.MONGOD_KILLED,
        Event.ASLEEP,
    }
)
"""Events that may keep records of the sync from MongoDB."""
