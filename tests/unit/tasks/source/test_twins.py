"""Of several documents of one natural key, one is sent."""

from itertools import pairwise, permutations
from typing import Any

import pytest
from bson import ObjectId
from hypothesis import given
from hypothesis import strategies as st

from tasks.entities import entity_type_named
from tasks.source.raw_document import UnreadableDocument
from tasks.source.twins import Twin, losers, twin_from, winners

NOW = 1_700_000_000_000
TENANT = entity_type_named("tenant")


def twins_of(*documents: dict[str, Any]) -> list[Twin]:
    """Twins of one natural key, each with its place as its `_id`."""
    return [
        twin_from(TENANT, "acme", {"_id": place, **document}, NOW)
        for place, document in enumerate(documents)
    ]


def test_what_ranks_a_document() -> None:
    document = {"_id": ObjectId(), "version": 3, "updatedAt": 5, "isDeleted": True}
    twin = twin_from(TENANT, "acme", document, NOW)
    assert twin == Twin(TENANT, document["_id"], "acme", 3, True, 5)


def test_what_can_not_be_read_counts_as_none() -> None:
    document = {"_id": 1, "version": "odd", "updated_at": "odd", "deleted": "odd"}
    assert twin_from(TENANT, "acme", document, NOW) == Twin(TENANT, 1, "acme", None, False, 0)


def test_a_document_that_can_not_be_read_ranks_by_what_can() -> None:
    document = UnreadableDocument("sha256:0", {"version": 3}, "no sound BSON")
    twin = twin_from(TENANT, "acme", document, NOW)
    assert twin == Twin(TENANT, "sha256:0", "acme", 3, False, 0)


@pytest.mark.parametrize(
    ("versions", "not_sent"),
    [
        ((), []),
        ((1,), []),
        ((1, 2), [0]),
        ((2, 1), [1]),
        ((-1, 0), [0]),
        ((1, 1, 1), [1, 2]),
        ((1, 3, 2, 3), [0, 2, 3]),
        ((None, 0), [0]),
        ((None, -1), [0]),
        ((None, None), [1]),
        (("odd", 0), [0]),
        (("odd", None), [1]),
        (("odd", "odder"), [1]),
    ],
)
def test_of_several_documents_of_one_key_the_highest_version_is_sent(
    versions: tuple[Any, ...], not_sent: list[int]
) -> None:
    twins = twins_of(*({"version": version} for version in versions))
    assert [twin.source_id for twin in losers(twins)] == not_sent


LOW_TO_HIGH: list[dict[str, Any]] = [
    {"deleted": True},
    {"deleted": True, "updated_at": NOW},
    {"deleted_at": NOW, "version": 9},
    {},
    {"updated_at": 1},
    {"updatedAt": 2},
    {"version": 1, "deleted_at": NOW + 1},
    {"version": 1, "updated_at": 1},
    {"version": 2, "updated_at": 0},
]
"""Live beats deleted, then the higher version, then the later change."""


@pytest.mark.parametrize(("low", "high"), list(pairwise(LOW_TO_HIGH)))
def test_which_of_two_is_sent(low: dict[str, Any], high: dict[str, Any]) -> None:
    assert [twin.source_id for twin in losers(twins_of(low, high))] == [0]
    assert [twin.source_id for twin in losers(twins_of(high, low))] == [1]


@pytest.mark.parametrize("order", list(permutations(range(3))))
def test_of_each_key_one_is_sent_whatever_stands_between(order: tuple[int, ...]) -> None:
    twins = [
        Twin(TENANT, (key, place), key, place, False, 0) for place in order for key in ("a", "b")
    ]
    lost = [twin.source_id for twin in losers(twins)]
    assert sorted(lost) == [("a", 0), ("a", 1), ("b", 0), ("b", 1)]


@given(st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from(LOW_TO_HIGH))))
def test_exactly_one_of_each_key_is_sent(documents: list[tuple[str, dict[str, Any]]]) -> None:
    twins = [
        twin_from(TENANT, key, {"_id": place, **document}, NOW)
        for place, (key, document) in enumerate(documents)
    ]
    lost = list(losers(twins))
    sent = [twin for twin in twins if twin not in lost]
    assert sorted(twin.natural_key for twin in sent) == sorted({key for key, _ in documents})
    assert winners(twins) == {twin.natural_key: twin for twin in sent}
    for each in sent:
        rivals = [twin for twin in twins if twin.natural_key == each.natural_key]
        assert each == max(rivals, key=lambda twin: (twin.rank, -twin.source_id))
