"""Long lists of `scripts.history` are read while they are printed."""

import json
from collections.abc import Iterator

import pytest
from bson import ObjectId

from scripts.history import Records
from scripts.item_tables import change_table
from tasks.trail.steps import StepRecord
from tests.trail_documents import PERMANENT, step_document

RUN = ObjectId()


class Trail:
    """A list of failures that tells how many have been read."""

    def __init__(self, length: int) -> None:
        self._documents = [step_document(RUN, number, PERMANENT) for number in range(length)]
        self.read = 0

    def records(self) -> Iterator[StepRecord]:
        for document in self._documents:
            self.read += 1
            yield StepRecord.model_validate(document)


def view_of(trail: Trail) -> Records[StepRecord]:
    return Records("failures", trail.records(), change_table, "Nothing is there")


@pytest.mark.parametrize("length", [0, 1, 3])
def test_a_list_that_is_printed_piece_by_piece_is_the_same_json(length: int) -> None:
    trail = Trail(length)
    text = "".join(view_of(trail).as_json())
    steps = [step.model_dump(mode="json", by_alias=True) for step in trail.records()]
    assert json.loads(text) == {"failures": steps}
    assert text == json.dumps(json.loads(text), indent=2)


def test_json_is_printed_as_it_is_read() -> None:
    trail = Trail(500)
    pieces = view_of(trail).as_json()
    for number in range(1, 5):
        next(pieces)
        assert trail.read == number


def test_tables_are_printed_as_they_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scripts.history._ROWS", 2)
    trail = Trail(5)
    read = [trail.read for table in view_of(trail).tables() if table.caption is None]
    assert read == [2, 4, 5]


def test_an_empty_list_is_told() -> None:
    (table,) = view_of(Trail(0)).tables()
    assert table.caption == "Nothing is there"
