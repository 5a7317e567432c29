"""A plan cuts a collection into ranges of `_id`: no gap, no overlap, never too many batches."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import pytest
from bson import MaxKey, MinKey, ObjectId
from hypothesis import given
from hypothesis import strategies as st

from tasks.entities import entity_type_named
from tasks.source.batch import (
    Batch,
    GoneBatch,
    batch_sizes,
    batches_of_one,
    can_start_range,
    numbered_batches,
)
from tasks.source.raw_document import SourceDocument, UnreadableDocument

TENANT = entity_type_named("tenant")
DOMAIN = entity_type_named("domain")

counts = st.integers(1, 1_000_000)
concurrencies = st.integers(1, 300)
limits = st.integers(1, 500)


def unreadable(source_id: str, **legible: Any) -> UnreadableDocument:
    return UnreadableDocument(source_id, legible, "no sound BSON")


def assert_whole(batches: Sequence[Batch]) -> None:
    """Check that the ranges leave nothing out and that none begins before the last has ended."""
    assert isinstance(batches[0].start, MinKey)
    assert isinstance(batches[-1].end, MaxKey)
    for batch, following in pairwise(batches):
        assert batch.end == following.start


@given(counts, concurrencies, limits)
def test_sizes_are_those_of_all_documents_and_differ_by_one_at_most(
    count: int, concurrency: int, max_batches: int
) -> None:
    sizes = batch_sizes(count, concurrency, max_batches)
    assert sum(sizes) == count
    assert max(sizes) - min(sizes) <= 1
    assert 1 <= len(sizes) <= max_batches


@given(counts, concurrencies, limits)
def test_all_of_the_concurrency_is_busy_to_the_end(
    count: int, concurrency: int, max_batches: int
) -> None:
    number = len(batch_sizes(count, concurrency, max_batches))
    if concurrency <= max_batches:
        assert number % concurrency == 0
    else:
        assert number == max_batches


@given(counts, concurrencies, limits)
def test_batches_are_not_small_beyond_what_keeps_the_concurrency_busy(
    count: int, concurrency: int, max_batches: int
) -> None:
    sizes = batch_sizes(count, concurrency, max_batches)
    assert len(sizes) <= concurrency or min(sizes) >= 250


@pytest.mark.parametrize(
    ("count", "concurrency", "max_batches", "planned"),
    [
        (101, 3, 100, 3),
        (101, 16, 100, 16),
        (1_000, 16, 100, 16),
        (1_000, 3, 100, 3),
        (5_000, 3, 100, 18),
        (25_000, 16, 100, 96),
        (25_000, 3, 100, 99),
        (25_000, 200, 100, 100),
    ],
)
def test_the_number_of_batches(
    count: int, concurrency: int, max_batches: int, planned: int
) -> None:
    assert len(batch_sizes(count, concurrency, max_batches)) == planned


def test_a_collection_that_was_emptied_meanwhile_has_batches_of_nothing() -> None:
    assert set(batch_sizes(0, 3, 100)) == {0}


@given(st.lists(st.integers(1, 1_000), min_size=1, max_size=50), st.data())
def test_numbered_batches_have_no_gap_and_no_overlap(sizes: list[int], data: st.DataObject) -> None:
    number = len(sizes)
    ids = data.draw(st.lists(st.integers(), unique=True, min_size=number, max_size=number))
    starts = [MinKey(), *sorted(ids)[1:]]
    batches = numbered_batches(TENANT, starts, sizes)
    assert_whole(batches)
    assert [batch.start for batch in batches] == starts
    assert [batch.size for batch in batches] == sizes
    assert len({batch.name for batch in batches}) == number
    assert batches[-1].name == f"tenant batch {number} of {number}"


documents = st.lists(
    st.one_of(
        st.integers().map(lambda number: {"_id": number, "id": f"key {number}"}),
        st.text().map(unreadable),
    ),
    max_size=20,
)


@given(documents)
def test_each_document_is_in_exactly_one_batch(documents: list[SourceDocument]) -> None:
    batches = batches_of_one(TENANT, documents)
    assert sum(batch.size for batch in batches) == len(documents)
    assert all(batch.size > 0 for batch in batches)
    if not documents:
        assert batches == []
        return
    assert_whole(batches)
    starts = [document["_id"] for document in documents[1:] if isinstance(document, dict)]
    assert [batch.start for batch in batches[1:]] == starts


def test_each_batch_of_one_is_named_after_its_item() -> None:
    key = ObjectId()
    batches = batches_of_one(
        TENANT, [{"_id": 1, "id": "acme"}, {"_id": "keyless"}, {"_id": key}, {"_id": 2, "id": "\n"}]
    )
    names = ["tenant acme", "tenant _id keyless", f"tenant {key}", r"tenant \n"]
    assert [batch.name for batch in batches] == names
    assert [batch.size for batch in batches] == [1, 1, 1, 1]


def test_a_document_that_no_range_can_start_at_goes_with_the_one_before() -> None:
    last = {"_id": MaxKey(), "host": "last"}
    batches = batches_of_one(DOMAIN, [{"_id": 1, "host": "a"}, unreadable("x", host="b"), last])
    assert [(batch.name, batch.size) for batch in batches] == [("domain a", 3)]


@pytest.mark.parametrize(
    "first", [{"_id": MaxKey(), "id": "first"}, unreadable("sha256:0", id="first")]
)
def test_the_first_document_starts_a_batch_whatever_it_is(first: SourceDocument) -> None:
    batches = batches_of_one(TENANT, [first, {"_id": 2, "id": "second"}])
    assert [batch.name for batch in batches] == ["tenant first", "tenant second"]
    assert_whole(batches)


def test_where_a_range_can_start() -> None:
    assert can_start_range({"_id": MinKey()})
    assert can_start_range({"_id": None})
    assert not can_start_range({"_id": MaxKey()})
    assert not can_start_range(unreadable("sha256:0"))


def test_a_batch_of_one_needs_no_more_of_its_document_than_its_key() -> None:
    (batch,) = batches_of_one(DOMAIN, [{"_id": 1, "host": "a.example"}])
    assert batch.name == "domain a.example"


def test_a_batch_of_items_that_are_gone() -> None:
    batch = GoneBatch("tenant", "gone 1 of 2", ("acme", "zenith"))
    assert (batch.name, batch.size) == ("tenant gone 1 of 2", 2)
