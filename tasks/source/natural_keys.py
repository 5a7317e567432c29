"""Natural keys in the language of MongoDB: as an expression, and as a condition of a query."""

from collections.abc import Collection

from bson import ObjectId

from tasks.entities import EntityType
from tasks.mongo import Document
from tasks.source.bookkeeping import KEY_LENGTH


def key_expression(entity_type: EntityType) -> Document:
    """Return the natural key of a document as MongoDB works it out; null where it has none.

    A text that is not UTF-8 counts here, which `natural_key_of` does not take for a key.
    """
    length = {"$strLenCP": "$$key"}
    is_key = {"$and": [{"$gt": [length, 0]}, {"$lte": [length, KEY_LENGTH]}]}
    cases = [
        {"case": _is_of_type("$$key", "objectId"), "then": {"$toString": "$$key"}},
        {"case": _is_of_type("$$key", "string"), "then": {"$cond": [is_key, "$$key", None]}},
    ]
    value = f"${entity_type.natural_key}" if entity_type.natural_key != "id" else _id_expression()
    return {
        "$let": {"vars": {"key": value}, "in": {"$switch": {"branches": cases, "default": None}}}
    }


def key_match(entity_type: EntityType, natural_keys: Collection[str]) -> Document:
    """Return what finds the documents of these natural keys by an index on them.

    It may find others too: the collection may compare texts by a collation of its own.
    """
    source_ids = [ObjectId(key) for key in natural_keys if _is_hex_id(key)]
    by_field: Document = {entity_type.natural_key: {"$in": [*natural_keys, *source_ids]}}
    if entity_type.natural_key != "id" or not source_ids:
        return by_field
    return {"$or": [by_field, {"_id": {"$in": source_ids}, "id": None}]}


def _id_expression() -> Document:
    """Return the field `id`; an ObjectId `_id` stands in where that is missing."""
    source_id = {"$cond": [_is_of_type("$_id", "objectId"), "$_id", None]}
    return {"$ifNull": ["$id", source_id]}


def _is_of_type(expression: str, bson_type: str) -> Document:
    return {"$eq": [{"$type": expression}, bson_type]}


def _is_hex_id(key: str) -> bool:
    return ObjectId.is_valid(key)
