"""One round: a sync, events in its midst, an operator's follow-up, and the checks."""

import time
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from enum import StrEnum
from random import Random
from typing import Final, Self

import psutil  # type: ignore[import-untyped]

from tests.benchmarks.chaos.checks import (
    AT_ITS_END,
    MOST_SENT_AGAIN,
    Evidence,
    has_ended,
    violations,
)
from tests.benchmarks.chaos.events import LOSING_RECORDS, Event, ScheduledEvent
from tests.benchmarks.chaos.faults import FaultPlan
from tests.benchmarks.chaos.interventions import EventFailed
from tests.benchmarks.chaos.ledger import Silence
from tests.benchmarks.chaos.operator import Operator
from tests.benchmarks.chaos.parts import STAGING, TIMEOUT_SECONDS, Parts, staging_beside
from tests.benchmarks.chaos.standing import EndpointDown, Limiter, Standing, drawn_standing
from tests.benchmarks.chaos.standing_checks import few_are_throttled, goes_on_without
from tests.benchmarks.chaos.waiting import within
from tests.benchmarks.chaos.workload import Items, insert_items
from tests.benchmarks.workload import Document

MOST_FOLLOW_UPS: Final = 3
END_SECONDS: Final = 300.0
"""Longest time until Prefect and the run's document agree on its end, that of a dead run too."""
_REACH_SECONDS: Final = 300.0
_EXIT_SECONDS: Final = 60.0
_EARLY: Final = 0.05
_LATE: Final = 0.95
_REACH_POLL_SECONDS: Final = 0.005
_NEXT_RUN_ONLY: Final = frozenset({Event.FLOW_RUN_DELETED, Event.DEPLOYMENT_DELETED})
"""Events after which Prefect may know no run any more that could be retried."""


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
    staging: "RoundPlan | None" = None
    """What goes on in another environment at the same time."""

    @classmethod
    def drawn(cls, seed: int, event: Event, items: int) -> Self:
        """Return a plan with one event, after 5% to 95% of the requests of a faultless run.

        The same seed and event make the same plan.
        """
        if event is Event.TWO_ENVIRONMENTS:
            return cls._in_two_environments(seed, items)
        can_resume = event not in _NEXT_RUN_ONLY
        follow_up = FollowUp.RESUME if can_resume and seed % 2 else FollowUp.NEXT_RUN
        if standing := drawn_standing(event, seed):
            return cls(seed, standing.most_items(items), (), follow_up, standing)
        share = Random(seed).uniform(_EARLY, _LATE)
        return cls(seed, items, (ScheduledEvent.drawn(event, seed, share, items),), follow_up)

    @classmethod
    def _in_two_environments(cls, seed: int, items: int) -> Self:
        """Return a plan with a sweep in each environment, and one more event in one of them."""
        dice = Random(f"{seed}|{Event.TWO_ENVIRONMENTS}")
        sweep = ScheduledEvent.drawn(Event.TWO_ENVIRONMENTS, seed, _EARLY, items)
        event = dice.choice([Event.FLOW_RUN_KILLED, Event.SUSPENDED])
        struck = cls.drawn(seed, event, items)
        struck = replace(struck, schedule=(sweep, *struck.schedule))
        other = cls(seed + 1, items, (sweep,), FollowUp.RESUME)
        here, there = dice.sample([struck, other], 2)
        return replace(here, staging=there)

    @property
    def events(self) -> set[Event]:
        scheduled = {scheduled.event for scheduled in self.schedule}
        return scheduled | {self.standing.event} if self.standing else scheduled

    @property
    def kinds(self) -> set[Event]:
        """The kinds of event that the round counts for."""
        return {Event.TWO_ENVIRONMENTS} if self.staging else self.events

    @property
    def most_lost(self) -> int:
        """Number of records that the events may lose: none where nothing is killed."""
        return MOST_SENT_AGAIN if self.events & LOSING_RECORDS else 0

    def __str__(self) -> str:
        events = [str(scheduled) for scheduled in self.schedule]
        if self.standing:
            events.insert(0, str(self.standing))
        told = f"seed {self.seed}: {', '.join(events)}, then {self.follow_up}"
        return f"{told}; in {STAGING} {self.staging}" if self.staging else told


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

    def and_in_staging(self, other: "RoundResult") -> "RoundResult":
        """Return the result of a round in two environments."""
        ends = (self.end_seconds, other.end_seconds)
        return replace(
            self,
            violations=(*self.violations, *(f"{STAGING}: {each}" for each in other.violations)),
            requests=self.requests + other.requests,
            faults=dict(Counter(self.faults) + Counter(other.faults)),
            resent=max(self.resent, other.resent),
            follow_ups=max(self.follow_ups, other.follow_ups),
            end_seconds=None if None in ends else max(end for end in ends if end is not None),
            seconds=max(self.seconds, other.seconds),
        )


def run_round(parts: Parts, plan: RoundPlan) -> RoundResult:
    """Run a round on parts that are all up; at its end they are up and idle again."""
    if plan.staging is None:
        return _run_in_one_environment(parts, plan)
    with staging_beside(parts) as other, ThreadPoolExecutor(1) as elsewhere:
        there = elsewhere.submit(_run_in_one_environment, other, plan.staging)
        here = _run_in_one_environment(parts, plan)
        return here.and_in_staging(there.result())


def _run_in_one_environment(parts: Parts, plan: RoundPlan) -> RoundResult:
    started = time.monotonic()
    parts.database.client.drop_database(parts.database)
    items = insert_items(parts.database, plan.items, plan.seed)
    standing = [plan.standing.fault] if plan.standing else []
    parts.hub.begin(FaultPlan(plan.seed, TIMEOUT_SECONDS), *standing)
    execution = _Execution(parts, plan, items)
    try:
        execution.run()
        evidence = execution.evidence()
        execution.await_exit()
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
    violations: list[str] = field(default_factory=list)
    silences: list[Silence] = field(default_factory=list)
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
        if not self._operator.has_swept():
            self.violations.append("a sweep has not succeeded")

    def evidence(self) -> Evidence:
        return Evidence(
            self.items,
            self.parts.hub.ledger(),
            list(self._database.sync_runs.find()),
            list(self._database.sync_steps.find()),
            {each: self._operator.state(each) for each in self._operator.flow_runs},
            self.plan.most_lost,
            self.silences,
        )

    def await_exit(self) -> None:
        """Wait until all processes of the round have left."""
        if not within(_EXIT_SECONDS, lambda: not self._processes()):
            self.violations.append(f"a process was still there after {_EXIT_SECONDS:g} s")

    def clean_up(self) -> None:
        """End all processes and unfinished runs of the round."""
        for process in self._processes():
            process.kill()
        for flow_run_id in self._operator.unfinished_runs():
            self._operator.give_up(flow_run_id)
        self._operator.close()

    def _carry_out(self, scheduled: ScheduledEvent, flow_run_id: str) -> None:
        event, at_request = scheduled.event, scheduled.at_request
        if not within(
            _REACH_SECONDS, lambda: self.parts.hub.has_seen(at_request), _REACH_POLL_SECONDS
        ):
            self.violations.append(f"{event} came too late: not after {at_request} requests")
        try:
            self.silences += scheduled.carry_out(self.parts, self._operator, flow_run_id)
        except EventFailed as failure:
            self.violations.append(f"{event}: {failure}")

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
        return self._operator.start(deployment, settings)

    def _start_next(self) -> None:
        self.follow_ups += 1
        self._start("changed")

    def _resume(self) -> None:
        self.follow_ups += 1
        self._operator.retry(self._operator.flow_runs[-1])

    def _may_go_on(self) -> bool:
        """Whether the latest run has ended and a valid item is not in."""
        latest = self._operator.flow_runs[-1]
        if not self._has_ended(latest):
            return False
        run = self._database.sync_runs.find_one({"flow_run_id": latest})
        return run is None or run["status"] not in AT_ITS_END or not self._only_invalid_failed(run)

    def _only_invalid_failed(self, run: Document) -> bool:
        not_in = {"run_id": run["_id"], "ok": False}
        return self._database.sync_steps.count_documents(not_in) == len(self.items.invalid)

    def _has_ended(self, flow_run_id: str) -> bool:
        return within(
            END_SECONDS,
            lambda: has_ended(
                self._database.sync_runs.find_one({"flow_run_id": flow_run_id}),
                self._operator.state(flow_run_id),
            ),
        )

    def _processes(self) -> list[psutil.Process]:
        return [
            p
            for flow_run_id in self._operator.flow_runs
            for p in self.parts.processes_of(flow_run_id)
        ]


def _of_limiter(plan: RoundPlan, evidence: Evidence) -> list[str]:
    return list(few_are_throttled(evidence)) if isinstance(plan.standing, Limiter) else []
