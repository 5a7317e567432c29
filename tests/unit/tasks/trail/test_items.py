"""`sync_items`: what a record says of an item, and what of it is shown."""

import json
from typing import Any

import pytest

from tasks.trail.items import ItemKey, ItemRecord, Recovery, Sent
from tests.trail_documents import HUB, RUN, at, confirmed, failure, item_key, item_record, sent

FIRST, SECOND, THIRD = confirmed("r-1", body={"id": "acme"}), sent("r-2"), sent("r-3")


@pytest.mark.parametrize(
    ("fields", "latest", "used_ids"),
    [
        ({}, None, set[str]()),
        ({"confirmed": FIRST, "confirmed_ids": ("r-0", "r-1")}, FIRST, {"r-0", "r-1"}),
        (
            {"confirmed": FIRST, "confirmed_ids": ("r-1",), "in_doubt": (SECOND, THIRD)},
            THIRD,
            {"r-1", "r-2", "r-3"},
        ),
        ({"in_doubt": (SECOND,)}, SECOND, {"r-2"}),
    ],
    ids=["nothing", "confirmed", "in doubt", "in doubt at first"],
)
def test_what_stage_1_may_have(
    fields: dict[str, Any], latest: Sent | None, used_ids: set[str]
) -> None:
    record = item_record(**fields)
    assert record.latest == latest
    assert record.used_ids == used_ids


def test_a_record_is_shown_without_what_only_decides() -> None:
    record = item_record(
        "acme",
        7,
        confirmed=FIRST,
        in_doubt=(SECOND,),
        confirmed_ids=("r-1",),
        recovered=Recovery(run_id=RUN, since=at(0)),
        last=failure(),
        not_in_since=at(0),
        attempts=2,
    )
    shown = json.loads(record.model_dump_json(by_alias=True))
    assert set(shown) == {
        "hub",
        "entity_type",
        "natural_key",
        "source_id",
        "confirmed",
        "last",
        "not_in_since",
        "attempts",
        "gone_since",
    }
    assert (shown["source_id"], shown["not_in_since"]) == ("7", "2024-01-01T00:00:00.000Z")
    assert shown["confirmed"]["body"] == {"id": "acme"}
    assert shown["last"]["error"]["class"] == "permanent"


def test_a_record_is_read_from_its_document_and_fields_of_later_versions_are_left_out() -> None:
    document = {**item_key("acme").as_match(), "_id": 1, "of_a_later_version": 1}
    record = ItemRecord.model_validate(document)
    assert (record.hub, record.entity_type, record.natural_key) == (HUB, "tenant", "acme")
    assert (record.confirmed, record.last, record.in_doubt, record.attempts) == (None, None, (), 0)


def test_a_key_matches_in_all_its_parts() -> None:
    assert ItemKey("a hub", "domain", "a.example").as_match() == {
        "hub": "a hub",
        "entity_type": "domain",
        "natural_key": "a.example",
    }
