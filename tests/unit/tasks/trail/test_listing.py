"""Listing: a list in order, by pages or as a whole, holds each document once."""

from collections.abc import Mapping
from typing import Any

import pytest
from pymongo.collection import Collection

from tasks.mongo import MongoRetry
from tasks.trail.listing import Listing

Document = dict[str, Any]
PLACES = [1, 1, 1, 2, 3, 3]
"""Those with the same place come in the order of their `_id`s."""


@pytest.fixture(params=[1, -1])
def order(request: pytest.FixtureRequest) -> Mapping[str, int]:
    return {"place": request.param, "_id": request.param}


@pytest.fixture
def listing(
    sync_steps: Collection[Document], order: Mapping[str, int], retry: MongoRetry
) -> Listing:
    sync_steps.drop_indexes()
    sync_steps.insert_many(
        [{"_id": number, "place": place} for number, place in enumerate(PLACES)][::-1]
    )
    return Listing(sync_steps, order, retry)


def in_order(order: Mapping[str, int]) -> list[int]:
    return list(range(len(PLACES)))[:: order["place"]]


def ids(documents: Any) -> list[int]:
    return [document["_id"] for document in documents]


@pytest.mark.parametrize(("skip", "limit"), [(0, 2), (2, 3), (5, 3), (6, 1), (0, 9)])
def test_a_page(listing: Listing, order: Mapping[str, int], skip: int, limit: int) -> None:
    assert ids(listing.page({}, limit, skip)) == in_order(order)[skip : skip + limit]


@pytest.mark.parametrize("at_once", [1, 2, 3, 6, 7])
@pytest.mark.parametrize("limit", [None, 0, 1, 4, 6, 9])
def test_a_list_as_a_whole(
    listing: Listing,
    order: Mapping[str, int],
    monkeypatch: pytest.MonkeyPatch,
    at_once: int,
    limit: int | None,
) -> None:
    monkeypatch.setattr("tasks.trail.listing._AT_ONCE", at_once)
    assert ids(listing.each({}, limit)) == in_order(order)[:limit]
    assert ids(listing.each({"place": 1})) == [n for n in in_order(order) if PLACES[n] == 1]


def test_what_comes_after_a_document(listing: Listing) -> None:
    whole = listing.page({}, 9)
    for position, document in enumerate(whole):
        assert listing.page(listing.beyond({}, document), 9) == whole[position + 1 :]
