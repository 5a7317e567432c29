"""Lookup: finds the items of a batch, and what is on record of each."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tasks.decision import Candidate
from tasks.entities import EntityType, entity_type_named
from tasks.mongo import identity
from tasks.request import is_held
from tasks.settings import Settings
from tasks.source.batch import Batch, GoneBatch
from tasks.source.item import DeletedRemnant, Found, InvalidItem, Item
from tasks.source.reader import SourceReader
from tasks.source.twins import Twin, winners
from tasks.trail.fields import RunId
from tasks.trail.items import ItemRecord, Items
from tasks.trail.steps import PriorStep, Steps


class Lookup:
    """Looks up items a page at a time; every method raises `MongoError`.

    Of a run that `leaves_unchanged` what is settled, no more is looked up of such items.
    """

    def __init__(
        self,
        run_id: RunId,
        settings: Settings,
        source: SourceReader,
        items: Items,
        steps: Steps,
        *,
        leaves_unchanged: bool,
    ) -> None:
        self._run_id = run_id
        self._leaves_unchanged = leaves_unchanged
        self._settings = settings
        self._source = source
        self._items = items
        self._steps = steps

    def pages(self, batch: Batch | GoneBatch) -> Iterator[list[Candidate]]:
        """Read the items of a batch, a page at a time; none is left out."""
        entity_type = entity_type_named(batch.entity_type)
        if isinstance(batch, GoneBatch):
            yield self._gone(entity_type, batch.natural_keys)
            return
        for page in self._source.pages(batch):
            yield self.candidates(entity_type, page)

    def candidates(self, entity_type: EntityType, page: Sequence[Found]) -> list[Candidate]:
        """Return items with what is on record of each."""
        name, source_ids = entity_type.name, [found.source_id for found in page]
        prior = self._steps.prior(self._run_id, name, source_ids)
        if prior or not self._leaves_unchanged:
            return self._looked_up(entity_type, page, prior)
        hub = self._settings.hub(entity_type)
        settled = self._items.settled(hub, name, _keys_of(page))
        held: list[Candidate] = []
        others: list[Found] = []
        for found in page:
            item = settled.get(found.natural_key or "")
            if item is not None and isinstance(found, Item) and is_held(found, item):
                held.append(Candidate(found, is_held=True))
            else:
                others.append(found)
        return [*held, *(self._looked_up(entity_type, others, prior) if others else ())]

    def _looked_up(
        self, entity_type: EntityType, page: Sequence[Found], prior: Mapping[bytes, PriorStep]
    ) -> list[Candidate]:
        hub = self._settings.hub(entity_type)
        known = self._items.known(hub, entity_type.name, _keys_of(page))
        doubtful = _doubtful_keys(page, known)
        lost = self._lost(entity_type, page, known, doubtful) if doubtful else {}
        return [
            Candidate(
                found,
                known.get(found.natural_key or ""),
                prior.get(identity(found.source_id)) if prior else None,
                lost.get(identity(found.source_id)) if lost else None,
            )
            for found in self._completed(entity_type, page)
        ]

    def bodies(
        self, entity_type: EntityType, natural_keys: Sequence[str]
    ) -> dict[str, dict[str, Any]]:
        """Return the bodies that Stage 1 has confirmed of items."""
        return self._items.bodies(self._settings.hub(entity_type), entity_type.name, natural_keys)

    def _lost(
        self,
        entity_type: EntityType,
        page: Sequence[Found],
        known: Mapping[str, ItemRecord],
        natural_keys: set[str],
    ) -> dict[bytes, Twin]:
        """Return the documents that others of their natural key win against, by `identity`.

        In a run, the one that was sent first wins.
        """
        twins = self._source.twins(entity_type, natural_keys)
        ranked = {identity(twin.source_id): twin for twin in twins}
        best = winners(twins)
        lost: dict[bytes, Twin] = {}
        for found in page:
            key = found.natural_key
            if key is None or key not in natural_keys:
                continue
            own, winner = identity(found.source_id), best.get(key)
            beaten = winner is not None and own != identity(winner.source_id)
            if beaten or self._has_sent_another(found, known.get(key)):
                lost[own] = ranked.get(own) or _removed(found, key)
        return lost

    def _has_sent_another(self, found: Found, known: ItemRecord | None) -> bool:
        """Return whether this run has sent another document of the natural key."""
        latest = known.latest if known else None
        is_of_this = latest is not None and latest.run_id == self._run_id
        return is_of_this and _is_another(found, known)

    def _completed(
        self, entity_type: EntityType, page: Sequence[Found]
    ) -> list[Item | InvalidItem]:
        """Make up for what deleted documents lack, from what Stage 1 has confirmed."""
        remnants = [found for found in page if isinstance(found, DeletedRemnant)]
        if not remnants:
            return [found for found in page if not isinstance(found, DeletedRemnant)]
        bodies = self.bodies(entity_type, [remnant.natural_key for remnant in remnants])
        return [
            found.completed(bodies.get(found.natural_key, {}))
            if isinstance(found, DeletedRemnant)
            else found
            for found in page
        ]

    def _gone(self, entity_type: EntityType, natural_keys: Sequence[str]) -> list[Candidate]:
        """Return items whose documents are gone as they are to be disabled; none that is back."""
        hub, name = self._settings.hub(entity_type), entity_type.name
        back = {twin.natural_key for twin in self._source.twins(entity_type, natural_keys)}
        keys = [key for key in natural_keys if key not in back]
        known, bodies = self._items.known(hub, name, keys), self.bodies(entity_type, keys)
        items = [
            gone_item(entity_type, known[key], bodies[key])
            for key in keys
            if key in known and key in bodies
        ]
        prior = self._steps.prior(self._run_id, name, [item.source_id for item in items])
        return [
            Candidate(item, known[item.natural_key], prior.get(identity(item.source_id)))
            for item in items
        ]


def gone_item(entity_type: EntityType, known: ItemRecord, body: Mapping[str, Any]) -> Item:
    """Return what is sent of an item whose source document is gone: as confirmed, but disabled."""
    version = known.confirmed.version if known.confirmed else ""
    return Item(
        entity_type,
        f"gone:{known.natural_key}",
        known.natural_key,
        f"{version}-gone",
        {**body, "enabled": False},
        is_gone=True,
    )


def _keys_of(page: Sequence[Found]) -> list[str]:
    return [found.natural_key for found in page if found.natural_key is not None]


def _doubtful_keys(page: Sequence[Found], known: Mapping[str, ItemRecord]) -> set[str]:
    """Return the natural keys of which another document may be the one to be sent."""
    copies = Counter(found.natural_key for found in page)
    return {
        key
        for found in page
        if (key := found.natural_key) is not None
        and (copies[key] > 1 or _is_another(found, known.get(key)))
    }


def _removed(found: Found, natural_key: str) -> Twin:
    """Return a document that was read, and is there no more."""
    return Twin(found.entity_type, found.source_id, natural_key, None, False, 0)


def _is_another(found: Found, known: ItemRecord | None) -> bool:
    """Return whether the document that was sent last of an item is another one than this."""
    if known is None:
        return False
    one, other = known.source_id, found.source_id
    return (type(one) is not type(other) or one != other) and identity(one) != identity(other)
