"""Tables of the command line: what fits into a terminal, and what they say."""

import io
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
from bson import ObjectId
from rich.console import Console
from rich.table import Table

from scripts.item_changes import ItemChanges
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
    print_table,
    run_head,
    run_table,
    short_time_of,
    slowest_table,
    stage_table,
)
from tasks.trail.fields import ForeignDocument
from tasks.trail.history import Page
from tasks.trail.items import ItemRecord
from tasks.trail.runs import RunErrorRecord, RunRecord
from tasks.trail.steps import StepRecord
from tests.item_documents import item_document, run_document
from tests.trail_documents import PERMANENT, TRANSIENT, at, step_document

RUN_ID = ObjectId("507f1f77bcf86cd799439011")
REQUEST_ID = "bd5aebc6b4bd41b7dae2b8c05e57d2fa"
HOST = "pagos.semperaltius.edu.mx"
MANY = {"total": 99_999, "success": 99_000, "failed": 99, "skipped": 900}


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Callable[[Table], str]:
    """Print a table on a terminal of 80 columns, and return what is there."""

    def printed(table: Table) -> str:
        screen = io.StringIO()
        console = Console(file=screen, width=80, markup=False, emoji=False, highlight=False)
        monkeypatch.setattr("scripts.run_tables.literal_console", lambda: console)
        print_table(table)
        return screen.getvalue()

    return printed


def a_run(**fields: Any) -> RunRecord:
    ended = {"status": "cancelled", "started_at": at(0), "finished_at": at(999.9)}
    stages = [stage | MANY | ended for stage in run_document("tenant", "subtenant")["stages"]]
    document = run_document() | ended | {"_id": RUN_ID, "totals": MANY, "stages": stages}
    return RunRecord.model_validate(document | fields)


def a_step(**fields: Any) -> StepRecord:
    long_message = "no tenant of that name, and none of another name either"
    error = {"code": "TEMPORARY_UNAVAILABLE", "message": long_message, "class": "transient"}
    change = {"field": "password_check_url", "old": '"https://a.example"', "new": None}
    document = step_document(RUN_ID, 1, PERMANENT) | {
        "entity_type": "domain",
        "natural_key": HOST,
        "version": "2024-01-01T00:00:00.000Z",
        "request_id": REQUEST_ID,
        "error": error,
        "attempts": 5,
        "duration_ms": 8000.0,
        "changes": [change],
    }
    return StepRecord.model_validate({**document, **fields})


def an_item(**fields: Any) -> ItemRecord:
    document = item_document(HOST, "domain", error=PERMANENT, attempts=12, **fields)
    return ItemRecord.model_validate({"not_in_since": at(0), "gone_since": at(0)} | document)


def page_of(*items: Any, more: int = 0) -> Any:
    return Page[Any](page=1, limit=20, total=len(items) + more, items=list(items))


def all_tables() -> Iterator[Table]:
    foreign = ForeignDocument.model_validate({"_id": RUN_ID, "document": "{" + "x " * 90 + "}"})
    run, step, item = a_run(), a_step(), an_item()
    yield run_table([run, a_run(flow_run_name="word " * 30), foreign], None)
    yield run_head(run)
    yield stage_table(run)
    yield failure_table([step, a_step(state="AwaitingRetry")], title="Failures", caption=None)
    yield slowest_table([step])
    yield change_table([step], None)
    yield not_in_table(page_of(item, foreign))
    yield gone_table(page_of(item, foreign))
    yield item_head(item)
    yield story_table(page_of(step))
    pages = dict.fromkeys(ItemChanges.model_fields, page_of(item))
    error = {"entity_type": "domain", "natural_key": None, "source_id": "4711"}
    other = RunErrorRecord.model_validate({**error, "code": "NOT_FOUND", "message": "none"})
    yield changes_table(ItemChanges.model_validate(pages), [other])


@pytest.mark.parametrize("table", [pytest.param(each, id=str(each.title)) for each in all_tables()])
def test_a_table_fits_80_columns_and_cuts_nothing(
    terminal: Callable[[Table], str], table: Table
) -> None:
    lines = terminal(table).splitlines()
    assert max(map(len, lines)) <= 80
    assert "…" not in "".join(lines)


@pytest.mark.parametrize(
    ("table", "ids"),
    [
        (run_table([a_run()], None), [str(RUN_ID)]),
        (failure_table([a_step()], title="Failures", caption=None), [REQUEST_ID]),
        (story_table(page_of(a_step())), [str(RUN_ID), REQUEST_ID]),
    ],
)
def test_an_id_stands_in_one_line(
    terminal: Callable[[Table], str], table: Table, ids: list[str]
) -> None:
    lines = terminal(table).splitlines()
    for each in ids:
        assert sum(each in line for line in lines) == 1


def test_where_there_is_room_ids_stand_beside_each_other(
    capsys: pytest.CaptureFixture[str],
) -> None:
    print_table(story_table(page_of(a_step())))
    assert f" {RUN_ID} {REQUEST_ID} " in capsys.readouterr().out


def test_times_are_short_as_those_of_ls() -> None:
    now = datetime.now(UTC)
    assert short_time_of(now) == f"{now:%m-%d %H:%M}"
    assert short_time_of(at(0)) == "2024-01-01"
    assert short_time_of(None) == "-"


def test_a_stage_that_goes_on_has_its_live_counts(terminal: Callable[[Table], str]) -> None:
    live = {"total": 40, "success": 30, "failed": 2, "skipped": 3, "unchanged": 3, "retrying": 1}
    begun = {"entity_type": "tenant", "status": "running", "started_at": at(0), **live}
    coming = {"entity_type": "client"}
    totals = {"total": 40, "success": 30, "failed": 2, "skipped": 3}
    run = a_run(status="running", finished_at=None, totals=totals, stages=[begun, coming])
    rows = [line.replace("│", " ").split() for line in terminal(stage_table(run)).splitlines()]
    assert ["tenant", "running", "40", "30", "2", "3", "-"] in rows
    assert ["client", "pending", "-", "-", "-", "-", "-"] in rows
    assert ["all", "40", "30", "2", "3", "-"] in rows
    (told,) = [row for row in rows if "await" in row]
    assert " ".join(told) == ("1 await a retry; 3 skipped as unchanged")


def test_what_changed_comes_in_the_order_in_which_it_needs_somebody(
    terminal: Callable[[Table], str],
) -> None:
    pages = {name: page_of(an_item()) for name in ItemChanges.model_fields}
    pages["recovered"] = page_of(an_item(), more=3)
    table = terminal(changes_table(ItemChanges.model_validate(pages)))
    told = ["newly failing", "still failing", "recovered", "gone"]
    assert sorted(told, key=lambda change: table.index(f"│ {change} ")) == told
    assert "1 newly failing, 1 still failing, 4 recovered, 1 gone" in table
    assert table.count("2024-01-01") == 2
    assert TRANSIENT.code not in table
