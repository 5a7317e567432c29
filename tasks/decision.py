"""Decides about items, from values alone: send one, record why it is not sent, or leave it alone.

Source of the rules: "Which errors are what" of the Stage 1 contract, and the flow's parameters.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Final, TypeAlias

from tasks.entities import label_of
from tasks.errors import (
    DUPLICATE_KEY,
    INTERNAL_ERROR,
    PARENT_FAILED,
    VALIDATION_ERROR,
    ErrorClass,
    ItemError,
    StopReason,
)
from tasks.source.item import Found, InvalidItem, Item, Unchanged
from tasks.trail.steps import PriorStep


@dataclass(frozen=True)
class Send:
    """Send the item; `attempts` requests were sent for it before."""

    item: Item
    attempts: int


@dataclass(frozen=True)
class Reject:
    """Do not send the item, and record why."""

    item: Item | InvalidItem
    error: ItemError


@dataclass(frozen=True)
class Keep:
    """Do nothing: the outcome on record stays."""

    error: ItemError | None


@dataclass(frozen=True)
class LeaveUnchanged:
    """Do nothing: an earlier run has sent the item as it is."""


@dataclass(frozen=True)
class WouldSend:
    """Do nothing: this is a dry run, and a real one would send the item."""

    natural_key: str


Decision: TypeAlias = Send | Reject | Keep | LeaveUnchanged | WouldSend


@dataclass(frozen=True)
class Conditions:
    """Conditions that hold for all items of a batch.

    `failed_keys` are, by entity type, the natural keys of parents whose children are not sent.
    """

    run_attempt: int
    is_dry_run: bool = False
    failed_keys: Mapping[str, Collection[str]] = field(default_factory=dict)


def decide(found: Found, prior: PriorStep | None, conditions: Conditions) -> Decision:
    """Decide what to do with an item; `prior` is its step on record in this run."""
    if prior is not None and is_final(prior, conditions.run_attempt):
        return Keep(prior.error)
    if isinstance(found, Unchanged):
        return LeaveUnchanged()
    if isinstance(found, InvalidItem):
        return Reject(found, ItemError(VALIDATION_ERROR, found.fault, ErrorClass.PERMANENT))
    if parent := failed_parent(found, conditions.failed_keys):
        return Reject(found, _not_sent(PARENT_FAILED, f"{parent} failed in this run"))
    if conditions.is_dry_run:
        return WouldSend(found.natural_key)
    return Send(found, prior.attempts if prior else 0)


def is_final(prior: PriorStep, run_attempt: int) -> bool:
    """Whether a step on record is the item's outcome in that attempt of the run.

    A success is. A failure is, unless it was transient; the next attempt tries all of them anew.
    """
    if prior.error is None:
        return True
    is_of_this = prior.run_attempt == run_attempt
    return is_of_this and prior.error.error_class is not ErrorClass.TRANSIENT


def failed_parent(item: Item, failed_keys: Mapping[str, Collection[str]]) -> str | None:
    """Return the failed item that this one refers to; None where there is none."""
    for parent in item.entity_type.parents:
        key = item.body.get(parent.field)
        if key in failed_keys.get(parent.entity_type, ()):
            return f"{parent.entity_type} {key}"
    return None


def after_stop(reason: StopReason, item: Item, prior: PriorStep | None) -> Reject | Keep:
    """Decide about an item whose turn comes when its run sends nothing more."""
    if prior is not None:
        return Keep(prior.error)
    return Reject(item, _not_sent(reason.code, reason.message))


def after_failed_batch(
    found: Found, prior: PriorStep | None, cause: BaseException
) -> Reject | Keep | LeaveUnchanged:
    """Decide about an item of a batch that an exception of our own has ended."""
    if prior is not None:
        return Keep(prior.error)
    if isinstance(found, Unchanged):
        return LeaveUnchanged()
    return Reject(found, ItemError(INTERNAL_ERROR, type(cause).__name__, ErrorClass.PERMANENT))


def stop_after(item: Item, error: ItemError | None) -> StopReason | None:
    """Return why the whole run is to stop after an item's outcome; None if it goes on."""
    if error is None or error.error_class is not ErrorClass.RUN_STOPPING:
        return None
    place = f"{item.entity_type.name} {label_of(item.natural_key, item.source_id)}"
    return StopReason(f"{error.code} at {place}: {error.message}")


DUPLICATE: Final = ItemError(
    DUPLICATE_KEY,
    "another document has this natural key too: the highest version wins",
    ErrorClass.PERMANENT,
)
"""Error of an item whose natural key another document of a higher version has too."""


def _not_sent(code: str, why: str) -> ItemError:
    return ItemError(code, f"not sent: {why}", ErrorClass.SKIPPED)
