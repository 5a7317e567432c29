"""`sync_items`: one document for each item of each Stage 1, as it is now."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, TypeAlias

from pydantic import Field
from pymongo import ASCENDING, IndexModel, InsertOne, UpdateOne
from pymongo.collection import Collection
from pymongo.cursor import Cursor

from tasks.entities import label_of
from tasks.errors import ItemError
from tasks.mongo import Document, MongoRetry, mongo_operation
from tasks.trail.bulk import is_inserted_as_it_is, write_all
from tasks.trail.fields import Record, RunKey, Text, UtcTime, readable

_logger: Final = logging.getLogger(__name__)

ItemWrite: TypeAlias = InsertOne[Document] | UpdateOne
IDS_KEPT: Final = 100
"""How many of the request ids that Stage 1 has confirmed of an item are remembered."""

UNKNOWN_DIGEST: Final = ""
"""Digest of content of which it can't be told what it is."""
_NOT_KNOWN: Final = dict.fromkeys(("confirmed.body", "last", "recovered"), False)
"""Fields that deciding does not need, and takes long to read."""
_SETTLED: Final[Document] = {
    "confirmed.request_id": {"$type": "string"},
    "confirmed.digest": {"$type": "string"},
    "source_id": {"$exists": True},
    "in_doubt.0": {"$exists": False},
    "not_in_since": {"$exists": False},
    "gone_since": {"$exists": False},
}
_SETTLED_FIELDS: Final = {
    "_id": False,
    "natural_key": True,
    "source_id": True,
    "confirmed.request_id": True,
    "confirmed.digest": True,
}
_ITEM_KEY: Final = [
    ("entity_type", ASCENDING),
    ("natural_key", ASCENDING),
    ("hub", ASCENDING),
]


def _of_those_with(field: str) -> IndexModel:
    return IndexModel(
        [("hub", ASCENDING), ("entity_type", ASCENDING), (field, ASCENDING)],
        partialFilterExpression={field: {"$exists": True}},
    )


ITEM_INDEXES: Final = [
    IndexModel(_ITEM_KEY, unique=True),
    _of_those_with("not_in_since"),
    _of_those_with("gone_since"),
    IndexModel(
        [("recovered.run_id", ASCENDING)],
        partialFilterExpression={"recovered.run_id": {"$exists": True}},
    ),
]


class Sent(Record):
    """Content that went to Stage 1 under a request id."""

    request_id: str = Field(examples=["bd5aebc6b4bd41b7dae2b8c05e57d2fa"])
    version: int | str = Field(examples=[1])
    digest: str = Field(
        examples=["9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"]
    )
    """SHA-256 of the body as canonical JSON; `UNKNOWN_DIGEST` where the body is not known."""
    run_id: RunKey = Field(examples=["507f1f77bcf86cd799439011"])
    at: UtcTime = Field(examples=["2024-01-01T00:00:07.000Z"])


class Confirmed(Sent):
    """Content that Stage 1 has confirmed."""

    body: dict[str, Any] = Field(default_factory=dict, examples=[{"host": "pagos.example"}])
    sync_id: str | None = None


class LastOutcome(Record):
    """The last outcome of an item."""

    ok: bool
    error: ItemError | None = None
    run_id: RunKey
    at: UtcTime


class Recovery(Record):
    """The run that brought an item in again, and since when it had not been in."""

    run_id: RunKey
    since: UtcTime


class ItemRecord(Record):
    """A document of `sync_items`."""

    hub: str = Field(examples=["https://hub.example/admin/domains/upsert"])
    """The upsert URL, without credentials and query."""
    entity_type: str = Field(examples=["domain"])
    natural_key: str = Field(examples=["pagos.semperaltius.edu.mx"])
    source_id: Text = Field(None, examples=["507f1f77bcf86cd799439013"])
    """`_id` of the document that was sent last."""
    revision: int = Field(0, exclude=True)
    """Raised with each announcement and each confirmation."""
    confirmed: Confirmed | None = None
    """What Stage 1 confirmed last."""
    in_doubt: tuple[Sent, ...] = Field((), exclude=True)
    """What was about to be sent since, oldest first: Stage 1 may have it."""
    last: LastOutcome | None = None
    not_in_since: UtcTime | None = None
    """When the present row of failures began."""
    attempts: int = 0
    """How many requests were sent for it since then."""
    recovered: Recovery | None = Field(None, exclude=True)
    confirmed_ids: tuple[str, ...] = Field((), exclude=True)
    """The newest `IDS_KEPT` request ids that Stage 1 has confirmed, oldest first."""
    doubted_ids: tuple[str, ...] = Field((), exclude=True)
    """The newest `IDS_KEPT` request ids that were in doubt when it confirmed another one."""
    gone_since: UtcTime | None = None
    """When its source document was first missed."""

    @property
    def latest(self) -> Sent | None:
        """Return what Stage 1 may have got last."""
        return self.in_doubt[-1] if self.in_doubt else self.confirmed

    @property
    def used_ids(self) -> set[str]:
        """Return the request ids that Stage 1 may take for repeats."""
        in_doubt = (sent.request_id for sent in self.in_doubt)
        return {*self.confirmed_ids, *self.doubted_ids, *in_doubt}


class SettledItem(NamedTuple):
    """An item that Stage 1 holds as confirmed last: nothing is in doubt, failing or gone."""

    source_id: Any
    request_id: str
    digest: str


@dataclass(frozen=True)
class ItemKey:
    """Key of a document of `sync_items`."""

    hub: str
    entity_type: str
    natural_key: str

    def as_match(self) -> Document:
        return {
            "hub": self.hub,
            "entity_type": self.entity_type,
            "natural_key": self.natural_key,
        }

    def as_match_at(self, revision: int) -> Document:
        """Match the item while its record is at that revision, which is 0 at first."""
        return {**self.as_match(), "revision": revision or {"$exists": False}}


@dataclass(frozen=True)
class Announcement:
    """A request that is about to be sent for an item, under an id that is new to it.

    `revision` is that of the item's record, on which this was decided; None for no record.
    """

    key: ItemKey
    source_id: Any
    sent: Sent
    revision: int | None


class Items:
    """Reads what is known of items, and announces what is about to be sent."""

    def __init__(self, items: Collection[Document], retry: MongoRetry) -> None:
        self._items = items
        self._retry = retry

    @mongo_operation
    def known(
        self, hub: str, entity_type: str, natural_keys: Sequence[str]
    ) -> dict[str, ItemRecord]:
        """Return what is known of items, without their bodies and last outcomes.

        A document of another shape is set aside: it stays, and its item is new.
        """
        match = _items(hub, entity_type, natural_keys)
        found = self._in_one_reply(match, _NOT_KNOWN, at_most=len(natural_keys))
        known = {}
        for document in found:
            if item := readable(ItemRecord, document):
                known[item.natural_key] = item
            else:
                self._set_aside(document)
        return known

    @mongo_operation
    def settled(
        self, hub: str, entity_type: str, natural_keys: Sequence[str]
    ) -> dict[str, SettledItem]:
        """Return those of the items that are settled; a quicker look than `known`."""
        match = {**_items(hub, entity_type, natural_keys), **_SETTLED}
        found = self._in_one_reply(match, _SETTLED_FIELDS, at_most=len(natural_keys))
        return {
            item["natural_key"]: SettledItem(item["source_id"], **item["confirmed"])
            for item in found
        }

    @mongo_operation
    def bodies(
        self, hub: str, entity_type: str, natural_keys: Sequence[str]
    ) -> dict[str, dict[str, Any]]:
        """Return the bodies that Stage 1 has confirmed of items."""
        match = _items(hub, entity_type, natural_keys)
        found = self._items.find(match, {"natural_key": True, "confirmed.body": True})
        return {
            item["natural_key"]: item["confirmed"]["body"]
            for item in found
            if item.get("confirmed")
        }

    @mongo_operation
    def announce(self, announcements: Sequence[Announcement]) -> set[str]:
        """Note what is about to be sent; return the natural keys that are not to be sent as told.

        Since they were looked up, something else was announced or confirmed of them.
        """
        taken = write_all(self._items, [_write_of(each) for each in announcements])
        return {announcements[position].key.natural_key for position in taken}

    @mongo_operation
    def are_back(self, hub: str, entity_type: str, natural_keys: Sequence[str]) -> None:
        """Note that items which had been gone are in the source again."""
        match = _items(hub, entity_type, natural_keys)
        self._items.update_many(match, {"$unset": {"gone_since": True}})

    def _in_one_reply(
        self, match: Document, fields: Mapping[str, bool], *, at_most: int
    ) -> Cursor[Document]:
        """Find so many documents at most."""
        # One more than that, so that MongoDB holds no cursor open for what is not there.
        return self._items.find(match, fields, batch_size=at_most + 1)

    def _set_aside(self, document: Document) -> None:
        """Let a document of another shape stand under no natural key, which is a text."""
        key = document["natural_key"]
        _logger.warning(
            "sync_items: the document of %s has another shape, and was set aside",
            label_of(key, document["_id"]),
        )
        aside = {"$set": {"natural_key": {"set_aside": key}}}
        self._items.update_one({"_id": document["_id"]}, aside)


def _items(hub: str, entity_type: str, natural_keys: Sequence[str]) -> Document:
    return {"hub": hub, "entity_type": entity_type, "natural_key": {"$in": list(natural_keys)}}


def _write_of(announcement: Announcement) -> ItemWrite:
    key, source_id = announcement.key, announcement.source_id
    sent = dict(vars(announcement.sent))
    if announcement.revision is None and is_inserted_as_it_is(source_id):
        document = {**key.as_match(), "source_id": source_id, "in_doubt": [sent], "revision": 1}
        return InsertOne(document)
    return UpdateOne(
        key.as_match_at(announcement.revision or 0),
        {"$set": {"source_id": source_id}, "$push": {"in_doubt": sent}, "$inc": {"revision": 1}},
        upsert=True,
    )
