"""The items of a round: valid ones at random versions, and a few invalid ones."""

from collections.abc import Mapping
from dataclasses import dataclass
from random import Random
from typing import Final

from pymongo.database import Database

from tasks.entities import ENTITY_TYPES, EntityType
from tasks.source.request_id import request_id
from tests.benchmarks.chaos.ledger import Accepted, ItemKey
from tests.benchmarks.workload import Document, generated_documents

INVALID_OF_EACH_TYPE: Final = 2
_NEWEST_VERSION: Final = 99


@dataclass(frozen=True)
class Items:
    """The content that Stage 1 should hold of each valid item, and the keys of invalid items."""

    valid: Mapping[ItemKey, Accepted]
    invalid: frozenset[ItemKey]

    @property
    def count(self) -> int:
        return len(self.valid) + len(self.invalid)


def insert_items(database: Database[Document], count: int, seed: int) -> Items:
    """Fill an empty database with `count` valid items, as many of each type, and invalid ones."""
    dice = Random(seed)
    valid: dict[ItemKey, Accepted] = {}
    invalid: set[ItemKey] = set()
    for entity_type in ENTITY_TYPES:
        documents = list(generated_documents(entity_type, count // len(ENTITY_TYPES)))
        for document in documents:
            document["version"] = dice.randint(1, _NEWEST_VERSION)
            item = _key(entity_type, document)
            valid[item] = _expected(item, document)
        faulty = [_invalid_document(entity_type, n) for n in range(INVALID_OF_EACH_TYPE)]
        invalid |= {_key(entity_type, document) for document in faulty}
        database[entity_type.collection].insert_many(
            dice.sample([*documents, *faulty], len(documents) + len(faulty))
        )
    return Items(valid, frozenset(invalid))


def _key(entity_type: EntityType, document: Document) -> ItemKey:
    return ItemKey(entity_type.name, document[entity_type.natural_key])


def _expected(item: ItemKey, document: Document) -> Accepted:
    body = {name: value for name, value in document.items() if name != "version"}
    version = document["version"]
    return Accepted(request_id(item.entity_type, item.natural_key, version), body)


def _invalid_document(entity_type: EntityType, number: int) -> Document:
    return {entity_type.natural_key: f"invalid-{number}", "enabled": "perhaps", "version": 1}
