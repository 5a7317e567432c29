"""The query that finds documents by their natural keys."""

from bson import ObjectId

from tasks.entities import entity_type_named
from tasks.source.natural_keys import key_match

OID = ObjectId("507f1f77bcf86cd799439011")
TENANT = entity_type_named("tenant")
DOMAIN = entity_type_named("domain")


def test_texts_are_looked_up_in_the_field() -> None:
    assert key_match(TENANT, ["acme", "a" * 12]) == {"id": {"$in": ["acme", "a" * 12]}}
    assert key_match(DOMAIN, {"a.example": 1}) == {"host": {"$in": ["a.example"]}}


def test_hex_ids_may_be_object_ids_and_those_of_documents_without_id() -> None:
    by_field = {"$in": ["acme", str(OID), OID]}
    assert key_match(TENANT, ["acme", str(OID)]) == {
        "$or": [{"id": by_field}, {"_id": {"$in": [OID]}, "id": None}]
    }
    assert key_match(DOMAIN, ["acme", str(OID)]) == {"host": by_field}
