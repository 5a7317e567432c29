"""The entity types as they are declared, and what items are called in names, logs and tables."""

from typing import Any

import pytest
from pydantic import ValidationError

from tasks.entities import ENTITY_NAMES, ENTITY_TYPES, entity_type_named, in_sync_order, label_of


def test_entity_types_are_declared_in_sync_order() -> None:
    assert [entity_type.name for entity_type in ENTITY_TYPES] == ENTITY_NAMES
    for position, entity_type in enumerate(ENTITY_TYPES):
        earlier = {parent.name for parent in ENTITY_TYPES[:position]}
        assert {parent.entity_type for parent in entity_type.parents} <= earlier


def test_a_selection_is_run_once_each_and_in_sync_order() -> None:
    assert in_sync_order(["domain", "tenant", "domain"]) == ["tenant", "domain"]


def test_a_label_is_one_short_line() -> None:
    label = label_of("a\nb\0" + "x" * 1_000, 1)
    assert label.startswith(r"a\nb\x00xxx")
    assert (len(label), label[-1]) == (255, "…")
    assert label_of(None, {"$x": "\r"}) == "_id {'$x': '\\r'}"


@pytest.mark.parametrize(
    ("entity_type", "fields", "added"),
    [
        ("tenant", {"id": "a", "name": "A"}, {"enabled": True}),
        ("tenant", {"id": "a", "name": "A", "enabled": False, "logo": None}, {}),
        ("client", {"id": "a", "name": "A", "redirect_uris": []}, {"enabled": True}),
        ("subtenant", {"id": "a", "name": "A", "tenant_id": "t"}, {"enabled": True}),
        ("domain", {"host": "a.example", "tenant_id": "t", "x": {"y": 1}}, {"enabled": True}),
        ("branding", {"id": "a"}, {}),
    ],
)
def test_a_body_is_the_fields_as_they_are_and_the_defaults(
    entity_type: str, fields: dict[str, Any], added: dict[str, Any]
) -> None:
    assert entity_type_named(entity_type).body(fields) == {**fields, **added}


def test_fields_that_do_not_fit_make_no_body() -> None:
    with pytest.raises(ValidationError):
        entity_type_named("tenant").body({"id": "a", "name": "A", "enabled": None})
