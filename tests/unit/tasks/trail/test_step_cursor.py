"""A place in the list of a run's steps, as text."""

import re

import pytest
from bson import ObjectId
from hypothesis import given
from hypothesis import strategies as st

from tasks.trail.step_cursor import CURSOR_PATTERN, StepCursor
from tests.trail_documents import at


@given(st.integers(0, 10**11), st.binary(min_size=12, max_size=12))
def test_a_place_is_found_again(milliseconds: int, step_id: bytes) -> None:
    document = {"created_at": at(milliseconds / 1000), "_id": ObjectId(step_id)}
    text = str(StepCursor.of(document))
    assert re.fullmatch(CURSOR_PATTERN, text)
    assert StepCursor.parsed(text).as_document() == document


@pytest.mark.parametrize(
    "text",
    ["", "1", "1-", f"-1-{'0' * 24}", f"1-{'g' * 24}", f"1-{'0' * 25}", f"{10**13}-{'0' * 24}"],
)
def test_what_names_no_place(text: str) -> None:
    assert not re.fullmatch(CURSOR_PATTERN, text)


def test_the_latest_time_that_a_text_can_name_is_one() -> None:
    assert StepCursor.parsed(f"{'9' * 13}-{'f' * 24}").created_at.year == 2286


def test_a_document_of_another_shape_has_no_place() -> None:
    assert StepCursor.of({"_id": ObjectId()}) is None
    assert StepCursor.of({"_id": "a note", "created_at": at(0)}) is None
    assert StepCursor.of({"_id": ObjectId(), "created_at": "yesterday"}) is None
