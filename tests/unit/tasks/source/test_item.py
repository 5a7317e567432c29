"""From a source document to what is sent of it, or to the reason why it can't be."""

import json
from datetime import UTC, datetime
from typing import Any

import bson
import pytest
from bson import (
    Binary,
    Code,
    DatetimeMS,
    DBRef,
    Decimal128,
    Int64,
    MaxKey,
    MinKey,
    ObjectId,
    Regex,
    Timestamp,
)
from hypothesis import given
from hypothesis import strategies as st

from scripts.seed_source import SEED_DOCUMENTS
from tasks.entities import ENTITY_NAMES, ENTITY_TYPES, entity_type_named
from tasks.source.bookkeeping import BOOKKEEPING, DELETION_FLAGS, DELETION_TIMES
from tasks.source.item import DeletedRemnant, InvalidItem, Item, item_from
from tasks.source.raw_document import UnreadableDocument

OID = ObjectId("507f1f77bcf86cd799439011")
NOW = 1_700_000_000_000
TENANT = {"_id": OID, "id": "acme", "name": "Acme", "version": 3}


def sent(entity_type: str, document: dict[str, Any]) -> Item:
    item = item_from(entity_type_named(entity_type), document, NOW)
    assert isinstance(item, Item), item
    return item


def fault(entity_type: str, document: dict[str, Any]) -> str:
    item = item_from(entity_type_named(entity_type), document, NOW)
    assert isinstance(item, InvalidItem), item
    return item.fault


@pytest.mark.parametrize("entity_type", ENTITY_NAMES)
def test_seed_documents_are_sent_as_they_are(entity_type: str) -> None:
    document = SEED_DOCUMENTS[entity_type]
    assert sent(entity_type, {"_id": OID, **document, "version": 1}).body == document


def test_bookkeeping_is_never_sent() -> None:
    told = {"_id", "version", *DELETION_TIMES, *DELETION_FLAGS}
    bookkeeping = {**dict.fromkeys(BOOKKEEPING - told, "x"), **dict.fromkeys(DELETION_TIMES, "")}
    document = {**TENANT, **bookkeeping, **dict.fromkeys(DELETION_FLAGS, False)}
    assert set(sent("tenant", document).body) == {"id", "name", "enabled"}
    assert {"createdAt", "updatedAt", "__v", "deletedAt", "isDeleted"} <= document.keys()


def test_unknown_fields_pass_through_in_json_form() -> None:
    extra = {
        "theme": {"colors": ["red", None], "owner": OID},
        "since": datetime(2024, 1, 2, 3, 4, 5, tzinfo=UTC),
        "price": Decimal128("1.50"),
        "seats": Int64(7),
        "ratio": 0.5,
    }
    body = sent("tenant", {**TENANT, **extra}).body
    assert {name: body[name] for name in extra} == {
        "theme": {"colors": ["red", None], "owner": str(OID)},
        "since": "2024-01-02T03:04:05Z",
        "price": "1.50",
        "seats": 7,
        "ratio": 0.5,
    }


def test_enabled_is_true_by_default_and_optional_fields_stay_away() -> None:
    assert sent("tenant", TENANT).body == {"id": "acme", "name": "Acme", "enabled": True}
    assert sent("branding", {"_id": OID, "id": "b", "version": 1}).body == {"id": "b"}


@pytest.mark.parametrize(
    ("deletion", "enabled"),
    [
        ({"deleted_at": NOW}, False),
        ({"deletedAt": datetime(2023, 1, 1, tzinfo=UTC)}, False),
        ({"isDeleted": True}, False),
        ({"deleted_at": NOW + 1}, True),
        ({"deletedAt": None, "deleted": False}, True),
    ],
)
def test_a_deleted_document_is_sent_as_disabled(deletion: dict[str, Any], enabled: bool) -> None:
    item = sent("tenant", {**TENANT, "enabled": True, **deletion})
    assert item.body == {"id": "acme", "name": "Acme", "enabled": enabled}
    assert item.version == 3


@pytest.mark.parametrize("name", [*DELETION_TIMES, *DELETION_FLAGS])
def test_a_deletion_that_says_neither_yes_nor_no_is_a_fault(name: str) -> None:
    assert fault("tenant", {**TENANT, name: "perhaps"}).startswith(f"{name}: ")


REMNANTS: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"name": None}, {}),
    ({"name": "", "slug": "acme"}, {"slug": "acme"}),
    ({"name": "Acme", "logo": Regex("x")}, {"name": "Acme"}),
    ({"name": 5, "logo": 5, "theme": Binary(b"x", 4)}, {}),
]


@pytest.mark.parametrize(("fields", "fit"), REMNANTS)
def test_of_a_deleted_document_that_does_not_fit_what_fits_is_left(
    fields: dict[str, Any], fit: dict[str, Any]
) -> None:
    tenant = entity_type_named("tenant")
    document = {"_id": OID, "id": "acme", "version": 3, "deleted": True, **fields}
    expected = {**fit, "id": "acme", "enabled": False}
    remnant = item_from(tenant, document, NOW)
    assert remnant == DeletedRemnant(tenant, OID, "acme", 3, expected)


def test_a_remnant_is_completed_from_what_is_confirmed() -> None:
    remnant = item_from(
        entity_type_named("domain"),
        {"_id": 1, "host": "a.example", "client_id": "new", "deletedAt": NOW},
        NOW,
    )
    assert isinstance(remnant, DeletedRemnant)
    confirmed = {"host": "a.example", "tenant_id": "t", "client_id": "old", "enabled": True}
    assert remnant.completed(confirmed).body == {
        "host": "a.example",
        "tenant_id": "t",
        "client_id": "new",
        "enabled": False,
    }
    assert remnant.completed({}).body == {
        "host": "a.example",
        "client_id": "new",
        "enabled": False,
    }


def test_whatever_a_deleted_document_says_of_being_enabled_fits() -> None:
    deleted = {**TENANT, "deleted": True, "enabled": Regex("x")}
    assert sent("tenant", deleted).body["enabled"] is False


@pytest.mark.parametrize(
    ("fields", "version"),
    [({"version": "odd"}, None), ({"version": "odd", "updatedAt": 5}, 5), ({"updatedAt": 5}, 5)],
)
def test_a_deleted_document_is_sent_whatever_its_version(
    fields: dict[str, Any], version: int | None
) -> None:
    document = {"_id": OID, "id": "acme", "name": "Acme", "deleted": True, **fields}
    assert sent("tenant", document).version == version


def test_a_deleted_document_without_natural_key_is_a_fault() -> None:
    assert "natural key" in fault("tenant", {"_id": 1, "deleted": True})


def test_an_object_id_stands_in_for_a_missing_id() -> None:
    item = sent("tenant", {"_id": OID, "name": "Acme", "version": 1})
    assert item.natural_key == item.body["id"] == str(OID)


def test_foreign_keys_that_are_object_ids_are_sent_as_hex() -> None:
    document = {"_id": 1, "host": "a.example", "tenant_id": OID, "version": 1}
    assert sent("domain", document).body["tenant_id"] == str(OID)


def test_urls_are_checked_and_sent_as_written() -> None:
    client = {"_id": 1, "id": "c", "name": "C", "version": 1}
    uris = ["https://Example.com", "com.example.app://callback"]
    assert sent("client", {**client, "redirect_uris": uris}).body["redirect_uris"] == uris
    assert "redirect_uris.0" in fault("client", {**client, "redirect_uris": ["no url"]})


def test_the_version_is_that_of_the_document_or_the_time_of_its_change() -> None:
    document = {"_id": 1, "id": "a", "name": "A", "updated_at": datetime(2024, 1, 1, tzinfo=UTC)}
    assert sent("tenant", {**document, "version": 3}).version == 3
    assert sent("tenant", document).version == 1_704_067_200_000


def test_a_version_that_is_no_integer_is_a_fault() -> None:
    assert fault("tenant", {**TENANT, "version": "3"}) == "version: not an integer"


def test_without_version_and_time_the_content_decides() -> None:
    first = sent("tenant", {"_id": 1, "id": "a", "name": "A", "last_sync": 1})
    again = sent("tenant", {"_id": 1, "id": "a", "name": "A", "last_sync": 2})
    changed = sent("tenant", {"_id": 1, "id": "a", "name": "B"})
    assert first.version is again.version is changed.version is None
    assert first.digest == again.digest != changed.digest


@pytest.mark.parametrize(
    "document",
    [
        {"_id": "string-id", "name": "A"},
        {"_id": 1, "id": "", "name": "A"},
        {"_id": 1, "id": 5, "name": "A"},
        {"_id": 1, "id": {"$gt": ""}, "name": "A"},
    ],
)
def test_a_document_without_natural_key_is_a_fault(document: dict[str, Any]) -> None:
    item = item_from(entity_type_named("tenant"), {**document, "version": 1}, NOW)
    assert isinstance(item, InvalidItem)
    assert item.natural_key is None
    assert "natural key" in item.fault


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("name", None),
        ("name", ""),
        ("name", 5),
        ("enabled", "yes"),
        ("enabled", 1),
        ("password_check_url", "no url"),
        ("logo", 1),
        ("extra", Binary(b"x")),
        ("extra", Regex("x")),
        ("extra", {"deep": [float("inf")]}),
    ],
)
def test_what_does_not_fit_the_model_is_a_fault_that_names_the_field(
    field: str, value: Any
) -> None:
    assert fault("tenant", {**TENANT, field: value}).startswith(field)


def test_a_fault_never_quotes_the_value() -> None:
    assert "marked" not in fault("tenant", {**TENANT, "password_check_url": "marked"})


def test_a_change_in_the_year_60000_has_a_version() -> None:
    moment = DatetimeMS(1_831_000_000_000_000)
    document = {"_id": 1, "id": "a", "name": "A", "updated_at": moment}
    assert sent("tenant", document).version == 1_831_000_000_000_000
    assert "DatetimeMS" in fault("tenant", {**TENANT, "since": moment})


@pytest.mark.parametrize("key", ["k" * 1_025, Code("k"), "\udcff", b"k", ["k"], {"$ref": "k"}])
def test_what_can_be_no_natural_key(key: Any) -> None:
    item = item_from(entity_type_named("domain"), {"_id": 1, "host": key, "tenant_id": "t"}, NOW)
    assert isinstance(item, InvalidItem)
    assert item.natural_key is None
    assert "natural key" in item.fault


@pytest.mark.parametrize("key", ["k" * 1_024, "$name", "a.b", "{0}{batch}", "\0", "\n", "\u202e"])
def test_a_natural_key_is_sent_as_it_is(key: str) -> None:
    assert sent("tenant", {**TENANT, "id": key}).body["id"] == key


def test_a_fault_is_one_short_line_whatever_the_names_in_the_document() -> None:
    told = fault("tenant", {**TENANT, "\n" + "x" * 10_000_000: Regex("x")})
    assert len(told) <= 500
    assert told.isprintable()


MODEL_FIELDS = sorted({name for each in ENTITY_TYPES for name in each.model.model_fields})
SNEAKY_NAMES = ["", "$x", "a.b", "model_config", "model_dump", "__class__", "__dict__", "_id", "\0"]
bson_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.integers(-(2**63), 2**63 - 1).map(Int64)
    | st.integers(-(2**63), 2**63 - 1).map(DatetimeMS)
    | st.floats()
    | st.text()
    | st.sampled_from(["x", "https://a.example", "k" * 1_025, "$name"])
    | st.binary()
    | st.datetimes(timezones=st.just(UTC))
    | st.builds(ObjectId)
    | st.decimals(places=2, min_value=-(10**9), max_value=10**9).map(Decimal128)
    | st.sampled_from(
        [
            Regex("x"),
            Code("x"),
            Code("x", {"a": 1}),
            Timestamp(1, 2),
            DBRef("a", 1),
            MinKey(),
            MaxKey(),
            Decimal128("NaN"),
            Decimal128("Infinity"),
            Binary(b"x", 4),
        ]
    ),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
field_names = st.text() | st.sampled_from([*MODEL_FIELDS, *BOOKKEEPING, *SNEAKY_NAMES])
documents = st.dictionaries(field_names, bson_values, max_size=8)
sound_fields = st.fixed_dictionaries(
    {},
    optional={
        "id": st.text(min_size=1),
        "host": st.text(min_size=1),
        "name": st.text(min_size=1),
        "tenant_id": st.text(min_size=1),
        "redirect_uris": st.just([]),
        "version": st.integers(-(2**63), 2**63 - 1) | st.floats(),
    },
)


@given(st.sampled_from(ENTITY_TYPES), bson_values, documents, sound_fields)
def test_a_document_of_any_shape_is_sent_as_json_or_has_a_fault(
    entity_type: Any, source_id: Any, fields: dict[str, Any], sound: dict[str, Any]
) -> None:
    document = {**fields, **sound, "_id": source_id}
    item = item_from(entity_type, document, NOW)

    assert item.source_id is source_id
    bson.encode({"key": item.natural_key, "version": item.version})
    if isinstance(item, InvalidItem):
        assert item.fault.isprintable()
        bson.encode({"fault": item.fault})
        return
    if isinstance(item, DeletedRemnant):
        item = item.completed({})
    assert item.body[entity_type.natural_key] == item.natural_key
    assert not set(item.body) & BOOKKEEPING
    json.dumps(item.body, ensure_ascii=False, allow_nan=False).encode()
    assert len(item.digest) == 64


def test_a_document_as_deep_as_mongodb_takes_is_sent() -> None:
    deep: Any = "bottom"
    for level in range(180):
        deep = [deep] if level % 2 else {"": deep}
    json.dumps(sent("tenant", {**TENANT, "deep": deep}).body)


@pytest.mark.parametrize(
    ("legible", "natural_key"),
    [({"id": "acme", "name": "Acme"}, "acme"), ({"id": "\udcff"}, None), ({}, None)],
)
def test_a_document_that_can_not_be_read_has_a_fault(
    legible: dict[str, Any], natural_key: str | None
) -> None:
    tenant = entity_type_named("tenant")
    document = UnreadableDocument("sha256:0", legible, "no sound BSON")
    item = item_from(tenant, document, NOW)
    assert item == InvalidItem(tenant, "sha256:0", natural_key, None, "no sound BSON")
