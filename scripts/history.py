"""Shows the latest runs, or what became of a run or an item, as the audit trail tells it."""

import argparse
import os
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from textwrap import indent
from typing import Final, Generic, NoReturn

from pydantic import BaseModel, ConfigDict
from rich.table import Table

from scripts.item_changes import (
    SORTED,
    ItemChanges,
    gone_now,
    item_changes,
    most_urgent,
    not_in_now,
)
from scripts.item_tables import (
    change_table,
    changes_table,
    gone_table,
    item_head,
    not_in_table,
    story_table,
)
from scripts.run_tables import (
    failure_table,
    literal_console,
    print_table,
    run_head,
    run_table,
    slowest_table,
    stage_table,
)
from tasks.entities import ENTITY_NAMES
from tasks.mongo_errors import MongoError
from tasks.settings import SettingsError, read_mongo_settings
from tasks.trail.fields import RecordType
from tasks.trail.history import Page, RunHistory, run_history
from tasks.trail.item_history import ItemDetails, ItemEntry, ItemHistory, item_history
from tasks.trail.runs import RunRecord
from tasks.trail.steps import StepRecord

_COMMAND: Final = "python -m scripts.history"
_LATEST: Final = "latest"
"""Names the newest run."""
_SHOWN: Final = 20
_MOST_SHOWN: Final = 10_000
_STEPS_SHOWN: Final = 50
_SLOWEST_SHOWN: Final = 10
_ROWS: Final = 200
"""How many rows a table of a long list has: MongoDB is read, and a table laid out, so far."""
_INDENT: Final = 2
_NEXT: Final = ",\n"


class NotOnRecord(LookupError):
    """The audit trail has no run and no item of the name that was asked for."""


class View(ABC):
    """Facts of the audit trail: JSON as they are, or tables."""

    @abstractmethod
    def tables(self) -> Iterator[Table]:
        """Yield the facts as tables."""

    @abstractmethod
    def as_json(self) -> Iterator[str]:
        """Yield the facts as JSON, piece by piece."""


class Facts(BaseModel, View):
    """Facts that are read as a whole."""

    model_config = ConfigDict(frozen=True)

    def as_json(self) -> Iterator[str]:
        yield self.model_dump_json(by_alias=True, indent=_INDENT, ensure_ascii=True)


@dataclass(frozen=True)
class Records(View, Generic[RecordType]):
    """A list that may be very long: it is read while it is printed.

    Attributes:
        name: what JSON calls it.
        records: what is in it.
        table: makes a table of some of it, with the caption that it is given.
        nothing: the caption of an empty list.
    """

    name: str
    records: Iterator[RecordType]
    table: Callable[[Sequence[RecordType], str | None], Table]
    nothing: str

    def tables(self) -> Iterator[Table]:
        first = list(islice(self.records, _ROWS))
        yield self.table(first, None if first else self.nothing)
        while rows := list(islice(self.records, _ROWS)):
            yield self.table(rows, None)

    def as_json(self) -> Iterator[str]:
        before = f'{{\n  "{self.name}": [\n'
        for record in self.records:
            text = record.model_dump_json(by_alias=True, indent=_INDENT, ensure_ascii=True)
            yield before + indent(text, 2 * _INDENT * " ")
            before = _NEXT
        yield "\n  ]\n}" if before == _NEXT else f'{{\n  "{self.name}": []\n}}'


class RunDetails(Facts):
    """A run, what it changed of items, its first failures, and its slowest items.

    A dry run changes no item; `changes` are the fields that it would change first.
    """

    run: RunRecord
    items: ItemChanges | None
    failures: list[StepRecord]
    changes: list[StepRecord]
    slowest: list[StepRecord]

    def tables(self) -> Iterator[Table]:
        yield run_head(self.run)
        yield stage_table(self.run)
        if self.items is not None and self.items.is_there_any:
            yield changes_table(self.items)
        if self.failures:
            yield _failure_table(self.failures, self._where_all(self.failures, "--failed"))
        if self.changes:
            yield change_table(self.changes, self._where_all(self.changes, "--changes"))
        if self.slowest:
            yield slowest_table(self.slowest)

    def _where_all(self, steps: list[StepRecord], option: str) -> str | None:
        if len(steps) < _STEPS_SHOWN:
            return None
        return (
            f"No more than {_STEPS_SHOWN} items are shown; all: {_COMMAND} {self.run.id} {option}"
        )


class NotIn(Facts):
    """Items that are not in now."""

    not_in: Page[ItemEntry]

    def tables(self) -> Iterator[Table]:
        yield not_in_table(self.not_in)


class Gone(Facts):
    """Items that are gone from the source now."""

    gone: Page[ItemEntry]

    def tables(self) -> Iterator[Table]:
        yield gone_table(self.gone)


class Items(Facts):
    """The items of a name: one, or one of each entity type that has it."""

    items: list[ItemDetails]

    def tables(self) -> Iterator[Table]:
        for item in self.items:
            yield from map(item_head, item.items)
            yield story_table(item.history)


def main() -> int:
    """Print what the arguments ask for; 2 when there is no such thing or no way to read it."""
    arguments = _arguments()
    try:
        settings = read_mongo_settings()
        view = _view(run_history(settings), item_history(settings), arguments)
        _print(view, as_json=arguments.json)
    except (SettingsError, MongoError, NotOnRecord) as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def _arguments() -> argparse.Namespace:
    parser = _parser()
    arguments = parser.parse_args()
    if (arguments.not_in or arguments.gone) and arguments.name is not None:
        parser.error("--not-in and --gone take no RUN_ID and no ITEM")
    if arguments.changes and arguments.name is None:
        parser.error("--changes asks for a RUN_ID")
    return arguments


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=_COMMAND, description=__doc__)
    parser.add_argument(
        "name",
        nargs="?",
        metavar="RUN_ID | ITEM",
        help=f"show this run ({_LATEST}: the newest one), or this item: ENTITY_TYPE/NATURAL_KEY, "
        "or a natural key alone; else list the latest runs",
    )
    lists = parser.add_mutually_exclusive_group()
    lists.add_argument(
        "--failed",
        action="store_true",
        help="list only runs that ended without every item in; with RUN_ID, all of its failures",
    )
    lists.add_argument(
        "--changes", action="store_true", help="with RUN_ID of a dry run, all that would change"
    )
    lists.add_argument("--not-in", action="store_true", help="list the items that are not in now")
    lists.add_argument(
        "--gone", action="store_true", help="list the items that are gone from the source now"
    )
    parser.add_argument(
        "--limit",
        type=_number_to_show,
        default=_SHOWN,
        metavar="N",
        help=f"how many runs, items of a list, or outcomes of an item (default {_SHOWN})",
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    return parser


def _number_to_show(text: str) -> int:
    if text.isdecimal() and 1 <= int(text) <= _MOST_SHOWN:
        return int(text)
    raise argparse.ArgumentTypeError(f"must be a number from 1 to {_MOST_SHOWN}")


def _view(runs: RunHistory, items: ItemHistory, arguments: argparse.Namespace) -> View:
    if arguments.not_in:
        return NotIn(not_in=not_in_now(items, arguments.limit))
    if arguments.gone:
        return Gone(gone=gone_now(items, arguments.limit))
    if arguments.name is None:
        return _latest_runs(runs, arguments.limit, only_failed=arguments.failed)
    run = _run_named(runs, arguments.name)
    if run is not None:
        return _view_of_run(runs, items, run, arguments)
    if arguments.failed or arguments.changes:
        raise NotOnRecord(f"There is no run {arguments.name!r}; {_COMMAND} lists the latest runs")
    return Items(items=_items_named(items, arguments.name, arguments.limit))


def _latest_runs(history: RunHistory, limit: int, *, only_failed: bool) -> View:
    runs = history.unsuccessful_runs(limit) if only_failed else history.latest_runs(limit)
    return Records("runs", runs, run_table, "No run to show")


def _view_of_run(
    history: RunHistory, items: ItemHistory, run: RunRecord, arguments: argparse.Namespace
) -> View:
    if arguments.failed:
        failures = history.failures(run.id)
        return Records("failures", failures, _failure_table, "No item has failed")
    if arguments.changes:
        changes = history.changes(run.id)
        nothing = "Nothing is on record that would change"
        return Records("changes", changes, change_table, nothing)
    return RunDetails(
        run=run,
        items=None if run.dry_run else item_changes(items, run).first(_STEPS_SHOWN),
        failures=most_urgent(history.failures(run.id, SORTED), _STEPS_SHOWN),
        changes=list(history.changes(run.id, _STEPS_SHOWN)) if run.dry_run else [],
        slowest=history.slowest(run.id, _SLOWEST_SHOWN),
    )


def _run_named(history: RunHistory, name: str) -> RunRecord | None:
    run = next(history.latest_runs(1), None) if name == _LATEST else history.named(name)
    return run if isinstance(run, RunRecord) else None


def _items_named(history: ItemHistory, name: str, limit: int) -> list[ItemDetails]:
    entity_type, _, natural_key = name.partition("/")
    if entity_type in ENTITY_NAMES and (item := history.item(entity_type, natural_key, 1, limit)):
        return [item]
    each = [history.item(entity_type, name, 1, limit) for entity_type in ENTITY_NAMES]
    if found := [item for item in each if item]:
        return found
    raise NotOnRecord(f"There is no run and no item {name!r}; {_COMMAND} lists the latest runs")


def _print(view: View, *, as_json: bool) -> None:
    if as_json:
        _print_json(view)
    else:
        for table in view.tables():
            print_table(table)


def _print_json(view: View) -> None:
    try:
        for text in view.as_json():
            print(text, end="")
        print(flush=True)
    except BrokenPipeError:
        literal_console().on_broken_pipe()


def _failure_table(steps: Sequence[StepRecord], caption: str | None) -> Table:
    return failure_table(steps, title="Failures", caption=caption)


def leave(status: int) -> NoReturn:
    """End the process without the half second that PyMongo waits for its threads at an exit."""
    sys.stdout.flush()
    os._exit(status)


if __name__ == "__main__":
    leave(main())
