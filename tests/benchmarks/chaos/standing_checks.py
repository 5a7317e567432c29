"""Checks of what a standing fault has done: each yields violations, besides those of all rounds."""

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Final

from tasks.entities import entity_type_named
from tasks.errors import HUB_UNAVAILABLE, TEMPORARY_UNAVAILABLE
from tests.benchmarks.chaos.checks import Evidence, listed
from tests.benchmarks.chaos.ledger import ItemKey
from tests.benchmarks.chaos.operator import PrefectState
from tests.benchmarks.workload import Document

MOST_THROTTLED: Final = 0.2
"""Share of all requests that a limiter may refuse."""
_MISSED: Final = frozenset({"dropped", "fault", "garbage", TEMPORARY_UNAVAILABLE})
"""Outcomes of a request that a planned fault kept from its item."""


def few_are_throttled(evidence: Evidence) -> Iterator[str]:
    """Yield a violation where a limiter has refused too many requests."""
    throttled, requests = evidence.ledger.throttled, len(evidence.ledger.requests)
    if throttled >= MOST_THROTTLED * requests:
        yield f"{throttled} of {requests} requests were throttled"


def goes_on_without(
    entity_name: str, evidence: Evidence, stages: Mapping[str, PrefectState]
) -> Iterator[str]:
    """Yield violations of a first run that has ended while an endpoint was down.

    Args:
        entity_name: the type whose endpoint it was.
        evidence: all that there is at the end of that run.
        stages: the states of its stages in Prefect.
    """
    for run in evidence.runs:
        yield from _only_its_stage_stopped(entity_name, run, stages)
        yield from _rest_is_skipped(entity_name, evidence.steps_of(run))
    yield from _others_are_in(entity_name, evidence)


def _only_its_stage_stopped(
    entity_name: str, run: Document, stages: Mapping[str, PrefectState]
) -> Iterator[str]:
    if run["status"] != "partial":
        yield f"the run ended as {run['status']} while an endpoint was down"
    for stage in run["stages"]:
        name = stage["entity_type"]
        state = stages.get(name)
        is_stopped = state is not None and state.name == "Stopped"
        if is_stopped != (name == entity_name):
            yield f"stage {name} is {state} while the endpoint of {entity_name} was down"
    failed = [stage["entity_type"] for stage in run["stages"] if stage["status"] == "failed"]
    if entity_name not in failed:
        yield f"stage {entity_name} has not failed while its endpoint was down"


def _rest_is_skipped(entity_name: str, steps: list[Document]) -> Iterator[str]:
    skipped = Counter(
        step["entity_type"]
        for step in steps
        if (step["error"] or {}).get("code") == HUB_UNAVAILABLE
    )
    if not skipped[entity_name]:
        yield f"no {entity_name} was skipped as {HUB_UNAVAILABLE}"
    if others := skipped.keys() - {entity_name}:
        yield f"{', '.join(sorted(others))} were skipped as {HUB_UNAVAILABLE}"


def _others_are_in(entity_name: str, evidence: Evidence) -> Iterator[str]:
    missed = _missed(evidence)
    waiting = [
        item
        for item in evidence.items.valid
        if item.entity_type != entity_name
        and item not in evidence.ledger.items
        and item not in missed
        and _parents_are_in(item, evidence)
    ]
    yield from listed(f"are not in, though only {entity_name} was down", waiting)


def _missed(evidence: Evidence) -> set[ItemKey]:
    """Return the items that have had requests, and a planned fault at each of them."""
    outcomes: dict[ItemKey, set[str | None]] = {}
    for seen in evidence.ledger.requests:
        outcomes.setdefault(ItemKey.of(seen), set()).add(seen.outcome)
    return {item for item, of_item in outcomes.items() if of_item <= _MISSED}


def _parents_are_in(item: ItemKey, evidence: Evidence) -> bool:
    body = evidence.items.valid[item].body
    parents = entity_type_named(item.entity_type).parents
    keys = [(parent.entity_type, body.get(parent.field)) for parent in parents]
    return all(key is None or ItemKey(name, key) in evidence.ledger.items for name, key in keys)
