"""The types that the trail's documents share: what they take, and how JSON shows them."""

from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from bson import ObjectId
from pydantic import Field, ValidationError

from tasks.trail.fields import Record, RunKey, UtcTime, stored

RUN_ID = ObjectId("507f1f77bcf86cd799439011")


class Sample(Record):
    """A record with one field of each type."""

    key: RunKey = RUN_ID
    at: UtcTime = datetime(2024, 1, 1, tzinfo=UTC)


@pytest.mark.parametrize("given", [RUN_ID, str(RUN_ID), str(RUN_ID).upper()])
def test_a_run_id_is_taken_as_such_and_as_text(given: Any) -> None:
    assert Sample(key=given).key == RUN_ID
    assert Sample(key=given).model_dump()["key"] == RUN_ID
    assert f'"key":"{RUN_ID}"' in Sample(key=given).model_dump_json()


@pytest.mark.parametrize("given", ["", "xyz", "507f1f77bcf86cd79943901", 7, 1.5, ["a"]])
def test_anything_else_is_no_run_id(given: Any) -> None:
    with pytest.raises(ValidationError, match=r"not a run_id \(24 hex digits\)"):
        Sample(key=given)


def test_a_time_is_shown_in_utc_to_the_millisecond() -> None:
    in_mexico = datetime(2023, 12, 31, 18, 0, 0, 7_999, tzinfo=timezone(timedelta(hours=-6)))
    assert '"at":"2024-01-01T00:00:00.007Z"' in Sample(at=in_mexico).model_dump_json()
    assert Sample(at=in_mexico).model_dump()["at"] is in_mexico


def test_a_record_is_stored_with_the_fields_that_it_does_not_show() -> None:
    class Told(Record):
        reason: str = Field(alias="class")

    class WithHidden(Sample):
        told: Told
        hidden: int = Field(7, exclude=True)

    record = WithHidden.model_validate({"told": {"class": "permanent"}})
    assert "hidden" not in record.model_dump()
    assert stored(record) == {
        "key": RUN_ID,
        "at": record.at,
        "told": {"class": "permanent"},
        "hidden": 7,
    }


def test_a_record_leaves_out_what_it_does_not_know_and_never_changes() -> None:
    record = Sample.model_validate({"key": RUN_ID, "of_a_later_version": 1})
    assert set(record.model_dump()) == {"key", "at"}
    with pytest.raises(ValidationError, match="frozen"):
        record.key = ObjectId()  # type: ignore[misc]
