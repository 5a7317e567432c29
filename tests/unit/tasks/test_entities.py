"""The entity types as they are declared, and what items are called in names, logs and tables."""

from tasks.entities import ENTITY_NAMES, ENTITY_TYPES, in_sync_order, label_of


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
