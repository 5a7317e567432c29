"""The documents of a measured run, and how they are sent."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from scripts.seed_source import SEED_DOCUMENTS
from tasks.entities import ENTITY_TYPES, EntityType

Document = dict[str, Any]

CONCURRENCY: Final = 16
_DEFAULT_CONCURRENCY: Final = 3


def generated_documents(entity_type: EntityType, count: int) -> Iterator[Document]:
    """Yield documents of the seed's shape; each names the parent with its own number."""
    for number in range(count):
        document = {
            name: _numbered(value, number)
            for name, value in SEED_DOCUMENTS[entity_type.name].items()
        }
        yield {**document, "version": 1}


def seed_documents(entity_type: EntityType, count: int) -> Iterator[Document]:
    """Yield the seed's only document of the type."""
    assert count == 1, "the seed has one document of each type"
    yield {**SEED_DOCUMENTS[entity_type.name], "version": 1}


@dataclass(frozen=True)
class Workload:
    """The documents of a run by entity type, the concurrency, and the time of the hub's answers."""

    name: str
    sizes: Mapping[str, int]
    concurrency: int = CONCURRENCY
    latency_ms: int = 0
    source: Callable[[EntityType, int], Iterator[Document]] = generated_documents

    @property
    def items(self) -> int:
        return sum(self.sizes.values())

    @property
    def entity_types(self) -> list[EntityType]:
        """The entity types that the workload has, in sync order."""
        return [entity_type for entity_type in ENTITY_TYPES if entity_type.name in self.sizes]

    def documents(self, entity_type: EntityType) -> Iterator[Document]:
        return self.source(entity_type, self.sizes[entity_type.name])


def _of_each_type(count: int) -> dict[str, int]:
    return {entity_type.name: count for entity_type in ENTITY_TYPES}


def five_types(each: int, *, latency_ms: int = 0) -> Workload:
    """Return a workload of the five entity types, `each` documents of each."""
    pace = f", hub in {latency_ms} ms" if latency_ms else ""
    return Workload(f"5 x {each:,}{pace}", _of_each_type(each), latency_ms=latency_ms)


def one_type(items: int) -> Workload:
    """Return a workload of tenants only."""
    return Workload(f"1 x {items:,}", {"tenant": items})


SEED: Final = Workload(
    "the seed's five",
    _of_each_type(1),
    concurrency=_DEFAULT_CONCURRENCY,
    source=seed_documents,
)


def _numbered(value: Any, number: int) -> Any:
    """Number a name or key; URLs and flags stay as they are."""
    if not isinstance(value, str) or "://" in value or value == "subtenant":
        return value
    return f"{value}-{number:07}"
