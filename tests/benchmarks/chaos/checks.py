"""Checks of what a round leaves, whatever was killed: each yields violations."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from tests.benchmarks.chaos.ledger import ItemKey, Ledger, Silence
from tests.benchmarks.chaos.operator import PrefectState
from tests.benchmarks.chaos.workload import Items
from tests.benchmarks.workload import Document

MOST_SENT_AGAIN: Final = 100
"""Number of records that a kill may lose."""
MOST_SENDERS: Final = 8
"""Number of requests that a sync has under way at most: each may be one too many."""
_SHOWN: Final = 3
_STATUS_BY_TYPE: Final = {
    "COMPLETED": "success",
    "FAILED": "failed",
    "CRASHED": "crashed",
    "CANCELLED": "cancelled",
    "DELETED": "cancelled",
}
_COUNTS: Final = ("total", "success", "failed", "skipped")
_TERMINAL: Final = frozenset({*_STATUS_BY_TYPE.values(), "partial"})
AT_ITS_END: Final = frozenset({"success", "partial"})
"""Statuses of a run that has dealt with all items."""


@dataclass(frozen=True)
class Evidence:
    """Everything that a round leaves.

    `states` are Prefect's, by flow run, in the order in which the runs were started. `most_lost`
    is how many records the events may lose.
    """

    items: Items
    ledger: Ledger
    runs: Sequence[Document]
    steps: Sequence[Document]
    states: Mapping[str, PrefectState]
    most_lost: int = 0
    silences: Sequence[Silence] = ()

    def steps_of(self, run: Document) -> list[Document]:
        return [step for step in self.steps if step["run_id"] == run["_id"]]


def violations(evidence: Evidence) -> list[str]:
    """Return the violations of all checks."""
    return [violation for check in _CHECKS for violation in check(evidence)]


def has_ended(run: Document | None, state: PrefectState) -> bool:
    """Whether a run has ended in Prefect and its document has the same end."""
    return run is not None and state.is_final and run["status"] == _status_of(state)


def listed(problem: str, items: Iterable[ItemKey]) -> Iterator[str]:
    """Yield how many items have a problem, with examples; nothing where there are none."""
    found = sorted(map(str, items))
    if found:
        examples = ", ".join(found[:_SHOWN])
        yield f"{len(found)} items {problem}, such as {examples}"


def _items_are_in(evidence: Evidence) -> Iterator[str]:
    held, expected = evidence.ledger.items, evidence.items.valid
    yield from listed("are not in", [item for item in expected if item not in held])
    other = [item for item in expected if item in held and held[item] != expected[item]]
    yield from listed("are in at another version or with another body", other)
    yield from listed("are in and should not be", [item for item in held if item not in expected])


def _one_step_an_item(evidence: Evidence) -> Iterator[str]:
    known = evidence.items.valid.keys() | evidence.items.invalid
    for run in evidence.runs:
        steps = Counter(_item_of(step) for step in evidence.steps_of(run))
        repeated = [item for item, count in steps.items() if count > 1]
        yield from listed(f"have more than one step in {_named(run)}", repeated)
        yield from listed(f"have a step in {_named(run)} and are unknown", steps.keys() - known)
        unchanged = sum(stage["unchanged"] for stage in run["stages"])
        dealt_with = steps.total() + unchanged
        if run["status"] in AT_ITS_END and dealt_with != evidence.items.count:
            yield (
                f"{_named(run)}: {steps.total()} steps and {unchanged} unchanged of "
                f"{evidence.items.count} items"
            )


def _valid_items_are_recorded_as_in(evidence: Evidence) -> Iterator[str]:
    recorded = {_item_of(step) for step in evidence.steps if step["ok"]}
    # What an earlier attempt of a run brings in, it can't record any more.
    late = {item for silence in evidence.silences for item in evidence.ledger.sent_in(silence)}
    missing = [item for item in evidence.items.valid if item not in recorded | late]
    yield from listed("have no successful step in any run", missing)


def _totals_equal_steps(evidence: Evidence) -> Iterator[str]:
    for run in evidence.runs:
        steps = evidence.steps_of(run)
        if run["status"] in _TERMINAL:
            yield from _differences(_named(run), run["totals"], steps, run["stages"])
        for stage in run["stages"]:
            own = [step for step in steps if step["entity_type"] == stage["entity_type"]]
            if stage["finished_at"] is not None:
                name = f"stage {stage['entity_type']} of {_named(run)}"
                yield from _differences(name, stage, own, [stage])


def _every_run_has_ended(evidence: Evidence) -> Iterator[str]:
    documents = {run["flow_run_id"]: run for run in evidence.runs}
    for flow_run_id, state in evidence.states.items():
        run = documents.get(flow_run_id)
        if run is None:
            yield f"flow run {flow_run_id} has no document; Prefect says {state}"
        elif not has_ended(run, state):
            yield f"{_named(run)}, Prefect says {state}"


def _no_stage_runs_in_an_ended_run(evidence: Evidence) -> Iterator[str]:
    for run in evidence.runs:
        running = [stage["entity_type"] for stage in run["stages"] if stage["status"] == "running"]
        if running and run["finished_at"] is not None:
            yield f"{_named(run)}: stage {', '.join(running)} still says running"


def _one_body_a_request_id(evidence: Evidence) -> Iterator[str]:
    for request_id, digests in evidence.ledger.digests.items():
        if len(digests) > 1:
            yield f"request id {request_id} came with {len(digests)} bodies"


def _little_is_sent_again(evidence: Evidence) -> Iterator[str]:
    resent = evidence.ledger.resent
    if resent > MOST_SENT_AGAIN:
        yield f"{resent} items were sent again though Stage 1 had confirmed them"


def _every_request_is_an_attempt(evidence: Evidence) -> Iterator[str]:
    recorded: Counter[ItemKey] = Counter()
    for step in evidence.steps:
        recorded[_item_of(step)] += step["attempts"]
    unknown = evidence.ledger.fewest_attempts - recorded
    if unknown.total() > evidence.most_lost:
        yield from listed("had more requests than attempts on record", unknown)


def _every_run_is_ours(evidence: Evidence) -> Iterator[str]:
    for run in evidence.runs:
        if run["flow_run_id"] not in evidence.states:
            yield f"{_named(run)} was not started here"


def _one_run_sends_at_a_time(evidence: Evidence) -> Iterator[str]:
    attempts = {run["flow_run_id"]: run["attempt"] for run in evidence.runs}
    for number, flow_run_id in enumerate(evidence.states, start=1):
        turns, attempt = evidence.ledger.turns[number], attempts.get(flow_run_id, 0)
        if turns > attempt:
            yield (
                f"run {number} of the round sent in turn with others: "
                f"{turns} times in {attempt} attempts"
            )


def _who_has_to_be_silent_is(evidence: Evidence) -> Iterator[str]:
    for silence in evidence.silences:
        sent = len(evidence.ledger.sent_in(silence))
        if sent > MOST_SENDERS:
            yield f"sender {silence.sender} sent {sent} requests when it had to be silent"


_CHECKS: Final[Sequence[Callable[[Evidence], Iterator[str]]]] = (
    _items_are_in,
    _one_step_an_item,
    _valid_items_are_recorded_as_in,
    _totals_equal_steps,
    _every_run_has_ended,
    _no_stage_runs_in_an_ended_run,
    _one_body_a_request_id,
    _little_is_sent_again,
    _every_request_is_an_attempt,
    _every_run_is_ours,
    _one_run_sends_at_a_time,
    _who_has_to_be_silent_is,
)


def _status_of(state: PrefectState) -> str:
    return "partial" if state.name == "Partial" else _STATUS_BY_TYPE[state.type]


def _differences(
    name: str, recorded: Document, steps: Sequence[Document], stages: Sequence[Document]
) -> Iterator[str]:
    counted = _counted(steps, unchanged=sum(stage["unchanged"] for stage in stages))
    totals = {count: recorded[count] for count in _COUNTS}
    if totals != counted:
        yield f"{name} says {totals}, its steps say {counted}"


def _counted(steps: Sequence[Document], *, unchanged: int) -> dict[str, int]:
    success = sum(step["ok"] for step in steps)
    not_sent = sum(not step["ok"] and step["error"]["class"] == "skipped" for step in steps)
    total = len(steps) + unchanged
    failed = len(steps) - success - not_sent
    return {"total": total, "success": success, "failed": failed, "skipped": not_sent + unchanged}


def _item_of(step: Document) -> ItemKey:
    return ItemKey(step["entity_type"], step["natural_key"])


def _named(run: Document) -> str:
    return f"run {run['_id']} ({run['mode']}, {run['status']})"
