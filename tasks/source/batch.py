"""A stage's batches: how a source collection is cut into ranges of `_id`."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final, TypeGuard

from bson import MaxKey, MinKey

from tasks.entities import EntityType, label_of
from tasks.mongo import Document
from tasks.source.bookkeeping import natural_key_of
from tasks.source.raw_document import SourceDocument, legible, source_id_of

LOWEST: Final = MinKey()
"""The start of a collection: no `_id` comes before it."""
NO_END: Final = MaxKey()
_LEAST_IN_BATCH: Final = 250
"""Items that a task run is worth, once an item no longer has one to itself."""


@dataclass(frozen=True)
class Batch:
    """The documents of a source collection with `start <= _id < end`, in BSON order.

    An `end` of `MaxKey` means no end: a document may have even that for its `_id`.
    `size` is the number of documents when the stage was planned.
    """

    entity_type: str
    label: str
    start: Any
    end: Any
    size: int

    @property
    def name(self) -> str:
        """Name of the task run, such as `tenant regnum-christi`."""
        return f"{self.entity_type} {self.label}"


@dataclass(frozen=True)
class GoneBatch:
    """Items that Stage 1 holds and whose documents are gone from the source."""

    entity_type: str
    label: str
    natural_keys: tuple[str, ...]

    @property
    def name(self) -> str:
        """Name of the task run, such as `tenant gone 1 of 2`."""
        return f"{self.entity_type} {self.label}"

    @property
    def size(self) -> int:
        """Number of items."""
        return len(self.natural_keys)


def batch_sizes(count: int, concurrency: int, max_batches: int) -> list[int]:
    """Cut a number of documents into at most `max_batches` sizes that differ by one at most.

    Their number is a multiple of `concurrency` where that fits, so that all of it is busy to the
    end.
    """
    wanted = min(max_batches, max(concurrency, count // _LEAST_IN_BATCH))
    number = wanted - wanted % concurrency if wanted >= concurrency else wanted
    bounds = [count * part // number for part in range(number + 1)]
    return [end - start for start, end in pairwise(bounds)]


def batches_of_one(entity_type: EntityType, documents: Sequence[SourceDocument]) -> list[Batch]:
    """Make each document a batch, labelled with its natural key.

    A document that no range can start at goes with the one before.
    """
    starts: list[Any] = []
    labels: list[str] = []
    sizes: list[int] = []
    for document in documents:
        if starts and not can_start_range(document):
            sizes[-1] += 1
            continue
        source_id = source_id_of(document)
        starts.append(source_id)
        labels.append(label_of(natural_key_of(entity_type, legible(document)), source_id))
        sizes.append(1)
    return _batches(entity_type, starts, labels, sizes)


def numbered_batches(
    entity_type: EntityType, starts: Sequence[Any], sizes: Sequence[int]
) -> list[Batch]:
    """Make a batch of each start and size, labelled with its number."""
    labels = [f"batch {number} of {len(starts)}" for number in range(1, len(starts) + 1)]
    return _batches(entity_type, starts, labels, sizes)


def can_start_range(document: SourceDocument) -> TypeGuard[Document]:
    """Return whether MongoDB can be asked for what comes from this document on."""
    return isinstance(document, dict) and not isinstance(document["_id"], MaxKey)


def _batches(
    entity_type: EntityType, starts: Sequence[Any], labels: Sequence[str], sizes: Sequence[int]
) -> list[Batch]:
    """Cut the whole collection at the starts; the outer ranges are open."""
    bounds = [LOWEST, *starts[1:], NO_END]
    return [
        Batch(entity_type.name, label, start, end, size)
        for label, (start, end), size in zip(labels, pairwise(bounds), sizes, strict=False)
    ]
