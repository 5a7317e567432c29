"""One round: a sync, events in its midst, an operator's follow-up, and the checks."""

import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from enum import StrEnum
from random import Random
from typing import Final, Self

import httpx
import psutil  # type: ignore[import-untyped]

from tests.benchmarks.chaos.checks import AT_ITS_END, Evidence, has_ended, violations
from tests.benchmarks.chaos.events import SECONDS, Event, ScheduledEvent
from tests.benchmarks.chaos.faults import FaultPlan
from tests.benchmarks.chaos.operator import Operator
from tests.benchmarks.chaos.parts import TIMEOUT_SECONDS, Parts
from tests.benchmarks.chaos.workload import Items, insert_items
from tests.benchmarks.workload import Document

MOST_FOLLOW_UPS: Final = 3
END_SECONDS: Final = 300.0
"""Longest time until Prefect and the run's document agree on its end, that of a dead run too."""
_REACH_SECONDS: Final = 300.0
_EXIT_SECONDS: Final = 15.0
_POLL_SECONDS: Final = 0.2
_REACH_POLL_SECONDS: Final = 0.005


class FollowUp(StrEnum):
    """The operator's action after the events."""

    RESUME = "resume"
    NEXT_RUN = "next run"


@dataclass(frozen=True)
class RoundPlan:
    """The course of a round: faults decided by the seed, events in order, then the follow-up."""

    seed: int
    items: int
    schedule: tuple[ScheduledEvent, ...]
    follow_up: FollowUp

    @classmethod
    def drawn(cls, seed: int, event: Event, items: int) -> Self:
        """Return a plan with one event, after 5% to 95% of the requests of a faultless run.

        The same seed and event make the same plan.
        """
        at_request = round(Random(seed).uniform(0.05, 0.95) * items)
        follow_up = FollowUp.RESUME if seed % 2 else FollowUp.NEXT_RUN
        return cls(seed, items, (ScheduledEvent(event, at_request, SECONDS[event]),), follow_up)

    def __str__(self) -> str:
        schedule = ", ".join(f"{s.event} after {s.at_request} requests" for s in self.schedule)
        return f"seed {self.seed}: {schedule}, then {self.follow_up}"


@dataclass(frozen=True)
class RoundResult:
    """The result of a round.

    `faults` counts requests by their fault. `resent` requests came although Stage 1 had confirmed
    the item. `end_seconds` is the time from the last event until the first run had ended, None
    where it never did.
    """

    plan: RoundPlan
    violations: tuple[str, ...]
    requests: int
    faults: Mapping[str, int]
    resent: int
    follow_ups: int
    end_seconds: float | None
    seconds: float

    @property
    def events(self) -> set[Event]:
        return {scheduled.event for scheduled in self.plan.schedule}


def run_round(parts: Parts, plan: RoundPlan) -> RoundResult:
    """Run a round on parts that are all up; at its end they are up and idle again."""
    started = time.monotonic()
    parts.database.client.drop_database(parts.database)
    items = insert_items(parts.database, plan.items, plan.seed)
    faults = FaultPlan(plan.seed, TIMEOUT_SECONDS)
    parts.hub.begin(faults)
    execution = _Execution(parts, items)
    try:
        execution.run(plan)
        evidence = execution.evidence()
    finally:
        execution.clean_up()
    ledger = evidence.ledger
    return RoundResult(
        plan,
        (*execution.violations, *violations(evidence)),
        len(ledger.requests),
        faults.counts(ledger.requests),
        ledger.resent,
        execution.follow_ups,
        execution.end_seconds,
        time.monotonic() - started,
    )


@dataclass
class _Execution:
    """A round in progress."""

    parts: Parts
    items: Items
    flow_runs: list[str] = field(default_factory=list)
    violations: list[str] = field(default_factory=list)
    follow_ups: int = 0
    end_seconds: float | None = None

    def __post_init__(self) -> None:
        self._operator = Operator(self.parts)
        self._database = self.parts.database

    def run(self, plan: RoundPlan) -> None:
        first = self._start("full")
        for scheduled in plan.schedule:
            self._carry_out(scheduled, first)
        last_event_at = time.monotonic()
        if plan.follow_up is FollowUp.NEXT_RUN:
            self._start_next()
        if self._has_ended(first):
            self.end_seconds = time.monotonic() - last_event_at
        elif plan.follow_up is FollowUp.RESUME:
            return
        self._follow_up(plan.follow_up)

    def evidence(self) -> Evidence:
        return Evidence(
            self.items,
            self.parts.hub.ledger(),
            list(self._database.sync_runs.find()),
            list(self._database.sync_steps.find()),
            {flow_run_id: self._operator.state(flow_run_id) for flow_run_id in self.flow_runs},
        )

    def clean_up(self) -> None:
        """End all processes and unfinished runs of the round."""
        _within(_EXIT_SECONDS, lambda: not self._processes())
        for process in self._processes():
            process.kill()
        for flow_run_id in self._operator.unfinished_runs():
            self._operator.give_up(flow_run_id)
        self._operator.close()

    def _carry_out(self, scheduled: ScheduledEvent, flow_run_id: str) -> None:
        event, at_request = scheduled.event, scheduled.at_request
        if not _within(
            _REACH_SECONDS, lambda: self.parts.hub.has_seen(at_request), _REACH_POLL_SECONDS
        ):
            self.violations.append(f"{event} came too late: not after {at_request} requests")
        scheduled.carry_out(self.parts, flow_run_id)

    def _follow_up(self, follow_up: FollowUp) -> None:
        while self._may_go_on() and self.follow_ups < MOST_FOLLOW_UPS:
            if follow_up is FollowUp.NEXT_RUN:
                self._start_next()
            else:
                self._resume()

    def _start(self, deployment: str) -> str:
        self.flow_runs.append(self._operator.start(deployment))
        return self.flow_runs[-1]

    def _start_next(self) -> None:
        self.follow_ups += 1
        self._start("changed")

    def _resume(self) -> None:
        self.follow_ups += 1
        self._operator.retry(self.flow_runs[-1])

    def _may_go_on(self) -> bool:
        """Whether the latest run has ended and a valid item is not in."""
        latest = self.flow_runs[-1]
        if not self._has_ended(latest):
            return False
        run = self._database.sync_runs.find_one({"flow_run_id": latest})
        return run is None or run["status"] not in AT_ITS_END or not self._only_invalid_failed(run)

    def _only_invalid_failed(self, run: Document) -> bool:
        not_in = {"run_id": run["_id"], "ok": False}
        return self._database.sync_steps.count_documents(not_in) == len(self.items.invalid)

    def _has_ended(self, flow_run_id: str) -> bool:
        return _within(
            END_SECONDS,
            lambda: has_ended(
                self._database.sync_runs.find_one({"flow_run_id": flow_run_id}),
                self._operator.state(flow_run_id),
            ),
        )

    def _processes(self) -> list[psutil.Process]:
        return [p for flow_run_id in self.flow_runs for p in self.parts.processes_of(flow_run_id)]


def _within(
    seconds: float, condition: Callable[[], bool], poll_seconds: float = _POLL_SECONDS
) -> bool:
    """Whether the condition holds within this time; not while Prefect does not answer."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        with suppress(httpx.HTTPError):
            if condition():
                return True
        time.sleep(poll_seconds)
    return False
