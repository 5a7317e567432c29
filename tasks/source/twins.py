"""Twins: documents of one natural key, of which one is sent."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from tasks.entities import EntityType
from tasks.mongo import Document
from tasks.source.bookkeeping import Unsendable, changed_at, is_deleted, stated_version
from tasks.source.raw_document import SourceDocument, legible, source_id_of


@dataclass(frozen=True)
class Twin:
    """A source document beside others of its natural key."""

    entity_type: EntityType
    source_id: Any
    natural_key: str
    version: int | None
    is_deleted: bool
    changed_at: int

    @property
    def rank(self) -> tuple[bool, bool, int, int]:
        """The higher is sent: live before deleted, then by version, then by last change."""
        return not self.is_deleted, self.version is not None, self.version or 0, self.changed_at


def twin_from(
    entity_type: EntityType, natural_key: str, document: SourceDocument, now: int
) -> Twin:
    """Return what ranks a document among its twins at `now`, in epoch milliseconds.

    A version that can't be read counts as none, a deletion that can't be read as none too.
    """
    fields = legible(document)
    return Twin(
        entity_type,
        source_id_of(document),
        natural_key,
        _version(fields),
        _is_deleted(fields, now),
        changed_at(fields) or 0,
    )


def losers(twins: Iterable[Twin]) -> Iterator[Twin]:
    """Yield the twins that are not sent; they come in `_id` order."""
    best: dict[str, Twin] = {}
    for twin in twins:
        loser = _enter(twin, best)
        if loser is not None:
            yield loser


def winners(twins: Iterable[Twin]) -> dict[str, Twin]:
    """Return the twin that is sent of each natural key; they come in `_id` order."""
    best: dict[str, Twin] = {}
    for twin in twins:
        _enter(twin, best)
    return best


def _enter(twin: Twin, best: dict[str, Twin]) -> Twin | None:
    """Enter a twin that is the best of its key so far; return the one that lost, None for none.

    Of equals the first wins.
    """
    rival = best.get(twin.natural_key)
    if rival is not None and twin.rank <= rival.rank:
        return twin
    best[twin.natural_key] = twin
    return rival


def _version(fields: Document) -> int | None:
    try:
        return stated_version(fields)
    except Unsendable:
        return None


def _is_deleted(fields: Document, now: int) -> bool:
    try:
        return is_deleted(fields, now)
    except Unsendable:
        return False
