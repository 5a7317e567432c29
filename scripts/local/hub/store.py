"""The items that the hub has accepted, in MongoDB."""

import uuid
from http import HTTPStatus
from typing import Any

from pymongo.database import Database
from pymongo.errors import DuplicateKeyError

from scripts.local.hub.messages import Answer, Document, Upsert, json_answer, refusal
from tasks.entities import ENTITY_TYPES
from tasks.errors import NOT_FOUND


class HubStore:
    """The accepted items, a collection for each endpoint, and the response to each request id."""

    def __init__(self, database: Database[Document]) -> None:
        self._responses = database["accepted_requests"]
        self._items = {t.name: database[t.endpoint] for t in ENTITY_TYPES}

    def upsert(self, upsert: Upsert) -> Answer:
        """Store an item once for each request id; its parents must be there."""
        entity_type, key, request_id = upsert.entity_type, upsert.key, upsert.request_id
        repeated = self._responses.find_one({"_id": request_id})
        if repeated is not None:
            return json_answer(HTTPStatus.OK, repeated["response"], "repeated")
        missing = self._missing_parent(upsert)
        if missing is not None:
            return refusal(HTTPStatus.NOT_FOUND, NOT_FOUND, f"{missing} does not exist")
        document = {"_id": key, "request_id": request_id, "item": upsert.item}
        self._items[entity_type.name].replace_one({"_id": key}, document, upsert=True)
        response = {"ok": True, "sync_id": uuid.uuid4().hex, entity_type.natural_key: key}
        try:
            self._responses.insert_one({"_id": request_id, "response": response})
        except DuplicateKeyError:
            return self.upsert(upsert)
        return json_answer(HTTPStatus.OK, response, "stored")

    def clear(self) -> None:
        for collection in (self._responses, *self._items.values()):
            collection.delete_many({})

    def counts(self) -> dict[str, int]:
        return {name: items.count_documents({}) for name, items in self._items.items()}

    def _missing_parent(self, upsert: Upsert) -> str | None:
        for parent in upsert.entity_type.parents:
            key = upsert.item.get(parent.field)
            if key is not None and not self._has(parent.entity_type, key):
                return f"{parent.entity_type} {key}"
        return None

    def _has(self, entity_name: str, key: Any) -> bool:
        found = isinstance(key, str) and self._items[entity_name].find_one({"_id": key})
        return bool(found)
