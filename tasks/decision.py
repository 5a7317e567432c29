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
    SUPERSEDED,
    VALIDATION_ERROR,
    WOULD_SEND,
    ErrorClass,
    ItemError,
    StopReason,
)
from tasks.request import Request, request_of
from tasks.source.item import InvalidItem, Item
from tasks.source.twins import Twin
from tasks.trail.items import ItemRecord
from tasks.trail.steps import PriorStep


@dataclass(frozen=True)
class Candidate:
    """An item as a batch finds it, with what is on record: of the item, and of it in this run.

    `lost_as` is the document itself where another one of its natural key is to be sent. `is_held`
    tells that Stage 1 holds the item as it is: then nothing more was looked up.
    """

    found: Item | InvalidItem
    known: ItemRecord | None = None
    prior: PriorStep | None = None
    lost_as: Twin | None = None
    is_held: bool = False

    @property
    def was_out(self) -> bool:
        """Whether the item is on record as one that is not in."""
        return self.known is not None and self.known.not_in_since is not None


@dataclass(frozen=True)
class Send:
    """Send the item; `attempts` requests were sent for it before."""

    request: Request
    attempts: int


@dataclass(frozen=True)
class Reject:
    """Do not send the item, and record why; `request` is the one that it would have been."""

    found: Item | InvalidItem | Twin
    error: ItemError
    request: Request | None = None


@dataclass(frozen=True)
class Keep:
    """Do nothing: the outcome on record stays."""

    error: ItemError | None


@dataclass(frozen=True)
class LeaveUnchanged:
    """Do nothing: Stage 1 holds the item as it is.

    `is_back` tells that its document was gone, and is there again.
    """

    natural_key: str
    is_back: bool = False


@dataclass(frozen=True)
class WouldSend:
    """Send nothing: this is a dry run, and a real one would send the item."""

    request: Request


Decision: TypeAlias = Send | Reject | Keep | LeaveUnchanged | WouldSend


@dataclass(frozen=True)
class Conditions:
    """Conditions that hold for all items of a batch.

    `failed_keys` are, by entity type, the natural keys of parents whose children are not sent.
    """

    run_attempt: int
    is_dry_run: bool = False
    leaves_unchanged: bool = False
    failed_keys: Mapping[str, Collection[str]] = field(default_factory=dict)


def decide(candidate: Candidate, conditions: Conditions) -> Decision:
    """Decide what to do with an item."""
    found, known, prior = candidate.found, candidate.known, candidate.prior
    if prior is not None and is_final(prior, conditions.run_attempt):
        return Keep(prior.error)
    if candidate.lost_as is not None:
        return Reject(candidate.lost_as, error_of_twin(candidate.lost_as))
    if isinstance(found, InvalidItem):
        return Reject(found, ItemError(VALIDATION_ERROR, found.fault, ErrorClass.PERMANENT))
    if candidate.is_held:
        return LeaveUnchanged(found.natural_key)
    request = request_of(found, known)
    if conditions.leaves_unchanged and request.is_in and known and not candidate.was_out:
        return LeaveUnchanged(found.natural_key, is_back=known.gone_since is not None)
    if parent := failed_parent(found, conditions.failed_keys):
        return Reject(found, _not_sent(PARENT_FAILED, f"{parent} failed in this run"), request)
    if conditions.is_dry_run:
        return Reject(found, request.repeat, request) if request.repeat else WouldSend(request)
    return Send(request, prior.attempts if prior else 0)


def is_final(prior: PriorStep, run_attempt: int) -> bool:
    """Whether a step on record is the item's outcome in that attempt of the run.

    A success is. A failure is, unless it was transient; the next attempt tries all of them anew.
    What would be sent is looked at again.
    """
    if prior.error is None:
        return True
    if prior.error.code == WOULD_SEND:
        return False
    is_of_this = prior.run_attempt == run_attempt
    return is_of_this and prior.error.error_class is not ErrorClass.TRANSIENT


def failed_parent(item: Item, failed_keys: Mapping[str, Collection[str]]) -> str | None:
    """Return the failed item that this one refers to; None where there is none."""
    for parent in item.entity_type.parents:
        key = item.body.get(parent.field)
        if key in failed_keys.get(parent.entity_type, ()):
            return f"{parent.entity_type} {key}"
    return None


def error_of_twin(loser: Twin) -> ItemError:
    """Return why a document is not sent while another one of its natural key is."""
    return _SUPERSEDED if loser.is_deleted else _DUPLICATE


def after_stop(reason: StopReason, request: Request, prior: PriorStep | None) -> Reject | Keep:
    """Decide about an item whose turn comes when its run sends nothing more."""
    if prior is not None:
        return Keep(prior.error)
    return Reject(request.item, _not_sent(reason.code, reason.message), request)


def after_failed_batch(
    candidate: Candidate, conditions: Conditions, cause: BaseException
) -> Reject | Keep | LeaveUnchanged:
    """Decide about an item of a batch that an exception of our own has ended."""
    if candidate.prior is not None:
        return Keep(candidate.prior.error)
    decision = decide(candidate, conditions)
    if isinstance(decision, LeaveUnchanged):
        return decision
    if candidate.lost_as is not None:
        return Reject(candidate.lost_as, error_of_twin(candidate.lost_as))
    error = ItemError(INTERNAL_ERROR, type(cause).__name__, ErrorClass.PERMANENT)
    return Reject(candidate.found, error)


def stop_after(item: Item, error: ItemError | None) -> StopReason | None:
    """Return why the whole run is to stop after an item's outcome; None if it goes on."""
    if error is None or error.error_class is not ErrorClass.RUN_STOPPING:
        return None
    place = f"{item.entity_type.name} {label_of(item.natural_key, item.source_id)}"
    return StopReason(f"{error.code} at {place}: {error.message}")


_DUPLICATE: Final = ItemError(
    DUPLICATE_KEY,
    "another document has this natural key too: the highest version wins",
    ErrorClass.PERMANENT,
)
_SUPERSEDED: Final = ItemError(
    SUPERSEDED,
    "not sent: this document is deleted, and another one has its natural key",
    ErrorClass.SKIPPED,
)
NOT_SENT_IN_DRY_RUN: Final = ItemError(
    WOULD_SEND, "not sent: this is a dry run", ErrorClass.SKIPPED
)
"""Outcome of an item that a real run would send."""


def _not_sent(code: str, why: str) -> ItemError:
    return ItemError(code, f"not sent: {why}", ErrorClass.SKIPPED)
