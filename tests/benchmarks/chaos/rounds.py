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

from tests.benchmarks.chaos.checks import (
    AT_ITS_END,
    MOST_SENT_AGAIN,
    Evidence,
    has_ended,
    violations,
)
from tests.benchmarks.chaos.events import LOSING_RECORDS, SECONDS, Event, ScheduledEvent
from tests.benchmarks.chaos.faults import FaultPlan
from tests.benchmarks.chaos.operator import Operator
from tests.benchmarks.chaos.parts import TIMEOUT_SECONDS, Parts
from tests.benchmarks.chaos.standing import EndpointDown, Limiter, Standing, drawn_standing
from tests.benchmarks.chaos.standing_checks import few_are_throttled, goes_on_without
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
    """The course of a round: faults decided by the seed, events in order, then the follow-up.

    A standing fault is there from the first request on.
    """

    seed: int
    items: int
    schedule: tuple[ScheduledEvent, ...]
    follow_up: FollowUp
    standing: Standing | None = None

    @classmethod
    def drawn(cls, seed: int, event: Event, items: int) -> Self:
        """Return a plan with one event, after 5% to 95% of the requests of a faultless run.

        The same seed and event make the same plan.
        """
        follow_up = FollowUp.RESUME if seed % 2 else FollowUp.NEXT_RUN
        if standing := drawn_standing(event, seed):
            return cls(seed, standing.most_items(items), (), follow_up, standing)
        at_request = round(Random(seed).uniform(0.05, 0.95) * items)
        return cls(seed, items, (ScheduledEvent(event, at_request, SECONDS[event]),), follow_up)

    @property
    def events(self) -> set[Event]:
        scheduled = {scheduled.event for scheduled in self.schedule}
        return scheduled | {self.standing.event} if self.standing else scheduled

    @property
    def most_lost(self) -> int:
        """Number of records that the events may lose: none where nothing is killed."""
        return MOST_SENT_AGAIN if self.events & LOSING_RECORDS else 0

    def __str__(self) -> str:
        events = [f"{s.event} after {s.at_request} requests" for s in self.schedule]
        if self.standing:
            events.insert(0, str(self.standing))
        return f"seed {self.seed}: {', '.join(events)}, then {self.follow_up}"


@dataclass(frozen=True)
class RoundResult:
    """The result of a round.

    `faults` counts requests by their fault. `resent` requests came although Stage 1 had confirmed
    the item. `end_seconds` is the time from the last event, or the start where there was none,
    until the first run had ended, None where it never did.
    """

    plan: RoundPlan
    violations: tuple[str, ...]
    requests: int
    faults: Mapping[str, int]
    resent: int
    follow_ups: int
    end_seconds: float | None
    seconds: float


def run_round(parts: Parts, plan: RoundPlan) -> RoundResult:
    """Run a round on parts that are all up; at its end they are up and idle again."""
    started = time.monotonic()
    parts.database.client.drop_database(parts.database)
    items = insert_items(parts.database, plan.items, plan.seed)
    standing = [plan.standing.fault] if plan.standing else []
    parts.hub.begin(FaultPlan(plan.seed, TIMEOUT_SECONDS), *standing)
    execution = _Execution(parts, plan, items)
    try:
        execution.run()
        evidence = execution.evidence()
    finally:
        execution.clean_up()
    ledger = evidence.ledger
    return RoundResult(
        plan,
        (*execution.violations, *violations(evidence), *_of_limiter(plan, evidence)),
        len(ledger.requests),
        parts.hub.fault_counts(),
        ledger.resent,
        execution.follow_ups,
        execution.end_seconds,
        time.monotonic() - started,
    )


@dataclass
class _Execution:
    """A round in progress."""

    parts: Parts
    plan: RoundPlan
    items: Items
    flow_runs: list[str] = field(default_factory=list)
    violations: list[str] = field(default_factory=list)
    follow_ups: int = 0
    end_seconds: float | None = None

    def __post_init__(self) -> None:
        self._operator = Operator(self.parts)
        self._database = self.parts.database

    def run(self) -> None:
        first = self._start("full")
        for scheduled in self.plan.schedule:
            self._carry_out(scheduled, first)
        last_event_at = time.monotonic()
        if self.plan.standing:
            self._await_end(first, last_event_at)
        if isinstance(self.plan.standing, EndpointDown):
            self._bring_back(self.plan.standing, first)
        if self.plan.follow_up is FollowUp.NEXT_RUN:
            self._start_next()
        self._await_end(first, last_event_at)
        if self.end_seconds is not None or self.plan.follow_up is FollowUp.NEXT_RUN:
            self._follow_up()

    def evidence(self) -> Evidence:
        return Evidence(
            self.items,
            self.parts.hub.ledger(),
            list(self._database.sync_runs.find()),
            list(self._database.sync_steps.find()),
            {flow_run_id: self._operator.state(flow_run_id) for flow_run_id in self.flow_runs},
            self.plan.most_lost,
        )

    def clean_up(self) -> None:
        """End all processes and unfinished runs of the round."""
        _within(_EXIT_SECONDS, lambda: not self._processes())
        for process in self._processes():
            process.kill()
        for flow_run_id in self._operator.due_runs():
            self._operator.give_up(flow_run_id)
        self._operator.close()

    def _carry_out(self, scheduled: ScheduledEvent, flow_run_id: str) -> None:
        event, at_request = scheduled.event, scheduled.at_request
        if not _within(
            _REACH_SECONDS, lambda: self.parts.hub.has_seen(at_request), _REACH_POLL_SECONDS
        ):
            self.violations.append(f"{event} came too late: not after {at_request} requests")
        scheduled.carry_out(self.parts, flow_run_id)

    def _await_end(self, first: str, since: float) -> None:
        if self.end_seconds is None and self._has_ended(first):
            self.end_seconds = time.monotonic() - since

    def _bring_back(self, standing: EndpointDown, first: str) -> None:
        """Check what the first run came to without the endpoint, and bring that back."""
        stages = self._operator.stages(first)
        self.violations += goes_on_without(standing.entity_type, self.evidence(), stages)
        self.parts.hub.mend()

    def _follow_up(self) -> None:
        while self._may_go_on() and self.follow_ups < MOST_FOLLOW_UPS:
            if self.plan.follow_up is FollowUp.NEXT_RUN:
                self._start_next()
            else:
                self._resume()

    def _start(self, deployment: str) -> str:
        settings = self.plan.standing.settings if self.plan.standing else {}
        self.flow_runs.append(self._operator.start(deployment, settings))
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


def _of_limiter(plan: RoundPlan, evidence: Evidence) -> list[str]:
    return list(few_are_throttled(evidence)) if isinstance(plan.standing, Limiter) else []


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
