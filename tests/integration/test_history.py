"""`python -m scripts.history`: what an operator sees of past runs and of items."""

import json
import os
import pty
import re
import subprocess
import sys
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from datetime import timedelta
from io import StringIO
from typing import Any
from unittest.mock import patch

import pytest
from bson import ObjectId

from scripts.history import main
from tasks.trail.stages import RunStatus
from tests.integration.world import REPOSITORY, Document, SyncRun, World

COMMAND = [sys.executable, "-m", "scripts.history"]
UNSUCCESSFUL = {"failed", "partial", "crashed", "cancelled"}
HOST = "pagos.semperaltius.edu.mx"
STEERING = "[/red]urn:key:1\x1b[31m\nnext"
STEERING_SHOWN = r"[/red]urn:key:1\x1b[31m\nnext"


def mongo_settings(world: World) -> dict[str, str]:
    """All that the command needs to know."""
    return {name: world.environment[name] for name in ("MONGODB_URI", "MONGODB_DB")}


@dataclass(frozen=True)
class Answer:
    """What a command has printed, and what it exits with."""

    returncode: int
    stdout: str
    stderr: str


def history(world: World, *arguments: str, **variables: str) -> Answer:
    """Run the command in this process: a start of Python costs more than what it does."""
    output, errors = StringIO(), StringIO()
    with (
        patch.object(sys, "argv", ["history", *arguments]),
        patch.dict(os.environ, {**mongo_settings(world), **variables}, clear=True),
        redirect_stdout(output),
        redirect_stderr(errors),
    ):
        returncode = _exit_code_of(main)
    return Answer(returncode, output.getvalue(), errors.getvalue())


def _exit_code_of(command: Callable[[], int]) -> int:
    try:
        return command()
    except SystemExit as refused:
        return int(refused.code or 0)


def told(world: World, *arguments: str) -> str:
    answer = history(world, *arguments)
    assert (answer.returncode, answer.stderr) == (0, "")
    return answer.stdout


def told_as_json(world: World, *arguments: str) -> Any:
    return json.loads(told(world, *arguments, "--json"))


def told_on_a_terminal(world: World, columns: int, *arguments: str) -> str:
    ours, its = pty.openpty()
    environment = {**mongo_settings(world), "TERM": "xterm", "COLUMNS": str(columns)}
    with subprocess.Popen([*COMMAND, *arguments], cwd=REPOSITORY, env=environment, stdout=its):
        os.close(its)
        return all_that_comes_from(ours)


def all_that_comes_from(terminal: int) -> str:
    received = b""
    try:
        while chunk := os.read(terminal, 65536):
            received += chunk
    except OSError:
        """The other side has closed the terminal."""
    os.close(terminal)
    return received.decode()


def id_of(run: SyncRun) -> str:
    return str(run.document["_id"])


def add_later_runs(world: World, model: SyncRun, *statuses: str) -> list[str]:
    """Record runs like the model, each a minute after the one before; return their ids."""
    runs = [
        {
            **model.document,
            "_id": ObjectId(),
            "flow_run_id": f"flow-run-{minutes}",
            "status": status,
            "started_at": model.document["started_at"] + timedelta(minutes=minutes),
        }
        for minutes, status in enumerate(statuses, start=1)
    ]
    world.database.sync_runs.insert_many(runs)
    return [str(run["_id"]) for run in runs]


def listed_ids(text: str) -> list[str]:
    return re.findall(r"^[0-9a-f]{24}", text, re.MULTILINE)


def cells(text: str, *values: str) -> list[str]:
    """The cells of the only table row that has all these values."""
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in text.splitlines()]
    (row,) = [row for row in rows if set(values) <= set(row)]
    return row


def refuse(*keys: str) -> list[Document]:
    return [{"key": key, "code": "NOT_FOUND", "message": f"no {key} here"} for key in keys]


def test_the_latest_runs_newest_first(world: World) -> None:
    world.add_seed()
    first = world.sync(trigger="nightly")
    world.hub.misbehave(*refuse("branding_rcsa_001"))
    second = world.sync(entities=["domain", "branding"], trigger="by hand")

    listing = told(world)
    assert listed_ids(listing) == [id_of(second), id_of(first)]
    started = first.document["started_at"]
    assert re.search(
        rf"^{id_of(first)} all entities - nightly +success +{started:%m-%d %H:%M} +\d+\.\d"
        r" +5 +5 +0 +0 *$",
        listing,
        re.MULTILINE,
    )
    assert re.search(
        rf"^{id_of(second)} domain, branding - by hand +partial .* 2 +1 +1 +0 *$",
        listing,
        re.MULTILINE,
    )
    assert listed_ids(told(world, "--limit", "1")) == [id_of(second)]
    assert [run["id"] for run in told_as_json(world)["runs"]] == [id_of(second), id_of(first)]


def test_twenty_runs_are_listed_unless_told_otherwise(world: World) -> None:
    later = add_later_runs(world, world.sync(entities=["tenant"]), *["success"] * 20)
    assert listed_ids(told(world)) == later[::-1]
    assert len(listed_ids(told(world, "--limit", "21"))) == 21


def test_failed_fills_the_limit_with_runs_that_are_not_a_success(world: World) -> None:
    world.add_tenants(1)
    model = world.sync(entities=["tenant"])
    ids = add_later_runs(world, model, *RunStatus, "success", "success")
    wanted = [
        run_id for run_id, status in zip(ids, RunStatus, strict=False) if status in UNSUCCESSFUL
    ]

    limit = ("--failed", "--limit", str(len(wanted)))
    assert listed_ids(told(world, *limit)) == wanted[::-1]
    assert {run["status"] for run in told_as_json(world, *limit)["runs"]} == UNSUCCESSFUL
    assert listed_ids(told(world, "--failed")) == wanted[::-1]


@pytest.fixture
def mixed_run(world: World, monkeypatch: pytest.MonkeyPatch) -> SyncRun:
    """A run with a slow item, one that fails after a retry and one that fails at once."""
    monkeypatch.setenv("ADMIN_RETRY_MAX", "1")
    world.add_seed()
    world.hub.misbehave(
        {"key": "semperaltius", "delay_ms": 400},
        {"key": HOST, "status": 503, "code": "SERVER_ERROR", "message": "worn out"},
        *refuse("branding_rcsa_001"),
    )
    return world.sync(trigger="a test")


def test_a_run_in_full(world: World, mixed_run: SyncRun) -> None:
    text = told(world, id_of(mixed_run))

    document = mixed_run.document
    for label, value in {
        "run_id": id_of(mixed_run),
        "run name": "all entities - a test",
        "status": "partial",
        "state in Prefect": "Partial",
        "message": document["message"],
        "trigger": "a test",
        "started (UTC)": f"{document['started_at']:%Y-%m-%d %H:%M:%S}",
        "finished (UTC)": f"{document['finished_at']:%Y-%m-%d %H:%M:%S}",
        "Prefect flow run": document["flow_run_id"],
    }.items():
        assert re.search(rf"^{re.escape(label)} +{re.escape(value)} *$", text, re.MULTILINE)

    assert cells(text, "client", "success")[:-1] == ["client", "success", "1", "1", "0", "0"]
    assert cells(text, "domain", "failed")[:-1] == ["domain", "failed", "1", "0", "1", "0"]
    assert cells(text, "all")[:-1] == ["all", "", "5", "3", "2", "0"]

    for item, error, attempts in (
        (f"domain/{HOST}", "SERVER_ERROR: worn out", "2"),
        ("branding/branding_rcsa_001", "NOT_FOUND: no branding_rcsa_001 here", "1"),
    ):
        request_id = mixed_run.step(item.partition("/")[2])["request_id"]
        row = [f"{item} {request_id}", error, attempts]
        assert cells(text, row[0]) == row
        assert cells(text, "newly failing", item) == ["newly failing", item, "-", error]
    failures = text.partition("Failures")[2]
    assert failures.index("NOT_FOUND") < failures.index("SERVER_ERROR"), "the next run may mend it"
    assert "--failed" not in text

    slowest = text.partition("Slowest items")[2]
    item, milliseconds, attempts = [
        cell.strip() for cell in slowest.splitlines()[4].split("│")[1:-1]
    ]
    assert (item, attempts) == ("client/semperaltius", "1")
    assert int(milliseconds) >= 400


def test_a_run_in_full_as_json(world: World, mixed_run: SyncRun) -> None:
    facts = told_as_json(world, id_of(mixed_run))

    assert set(facts) == {"run", "items", "failures", "changes", "slowest"}
    assert facts["changes"] == []
    run = facts["run"]
    assert (run["id"], run["status"]) == (id_of(mixed_run), "partial")
    assert run["totals"] == mixed_run.document["totals"]
    assert run["flow_run_id"] == mixed_run.document["flow_run_id"]
    assert run["finished_at"].endswith("Z")
    assert [stage["failed"] for stage in run["stages"]] == [0, 0, 0, 1, 1]

    refused, worn_out = facts["failures"]
    changed = {name: page["total"] for name, page in facts["items"].items()}
    assert changed == {"newly_failing": 2, "still_failing": 0, "recovered": 0, "gone": 0}
    new = [item["natural_key"] for item in facts["items"]["newly_failing"]["items"]]
    assert new == ["branding_rcsa_001", HOST]
    assert told_as_json(world, "latest") == facts
    assert told_as_json(world, run["flow_run_id"]) == facts
    assert (worn_out["natural_key"], worn_out["attempts"]) == (HOST, 2)
    assert worn_out["request_id"] == mixed_run.step(HOST)["request_id"]
    expected = {"code": "SERVER_ERROR", "message": "worn out", "class": "transient"}
    assert worn_out["error"] == expected
    assert refused["natural_key"] == "branding_rcsa_001"
    assert told_as_json(world, id_of(mixed_run), "--failed") == {"failures": [worn_out, refused]}

    durations = [step["duration_ms"] for step in facts["slowest"]]
    assert len(durations) == 5
    assert durations == sorted(durations, reverse=True)
    assert facts["slowest"][0]["natural_key"] == "semperaltius"


def test_fifty_failures_and_ten_slow_items_are_shown_and_failed_shows_all(world: World) -> None:
    keys = world.add_tenants(52)
    world.hub.misbehave(*refuse(*keys))
    run = world.sync(entities=["tenant"])
    run_id = id_of(run)

    text = told(world, run_id)
    failures, _, slowest = text.partition("Failures")[2].partition("Slowest items")
    assert failures.count("│ NOT_FOUND: ") == 50
    assert f"python -m scripts.history {run_id} --failed" in failures
    assert len(re.findall("│ tenant/tenant-", slowest)) == 10

    all_failures = told(world, run_id, "--failed")
    assert sorted(re.findall(r"│ tenant/(tenant-\d+) ", all_failures)) == keys
    assert "Totals" not in all_failures
    assert "Slowest" not in all_failures

    facts = told_as_json(world, run_id)
    assert (len(facts["failures"]), len(facts["slowest"])) == (50, 10)
    assert len(told_as_json(world, run_id, "--failed")["failures"]) == 52


def test_counts_of_a_run_under_way_are_those_on_its_record(world: World) -> None:
    world.add("tenant", {"id": "acme", "name": "Acme", "version": 1})
    world.hub.misbehave(*refuse("acme"))
    run = world.sync(entities=["tenant"])
    under_way = {"status": "running", "finished_at": None, "message": None}
    live = {"totals.total": 9, "totals.success": 7, "totals.failed": 1, "stages.0.retrying": 1}
    world.database.sync_runs.update_one({}, {"$set": {**under_way, **live}})
    world.database.sync_steps.update_one({}, {"$set": {"state": "AwaitingRetry"}})

    listed = rf"^{id_of(run)} tenant - manual +running +\S+ \S+ +- +9 +7 +1 +0 *$"
    assert re.search(listed, told(world), re.MULTILINE)
    text = told(world, id_of(run))
    assert cells(text, "all") == ["all", "", "9", "7", "1", "0", "-"]
    assert "1 await a retry" in text
    assert "1, to be retried" in cells(text, "NOT_FOUND: no acme here", "1, to be retried")
    assert listed_ids(told(world, "--failed")) == []


def test_where_there_is_nothing_to_show(world: World) -> None:
    assert "No run to show" in told(world)
    assert told_as_json(world, "--failed") == {"runs": []}
    run = world.sync()
    assert "No item has failed" in told(world, id_of(run), "--failed")
    assert told_as_json(world, id_of(run))["failures"] == []
    assert "Failures" not in told(world, id_of(run))
    nothing = " ".join(told(world, id_of(run), "--changes").split())
    assert "Nothing is on record that would change" in nothing
    assert "No item is on record as not in" in told(world, "--not-in")
    assert "No item is on record as gone" in told(world, "--gone")
    assert "What changed" not in told(world, "latest")


def test_an_item_without_a_natural_key_goes_by_its_id(world: World) -> None:
    world.add("domain", {"_id": 4711, "tenant_id": "nobody"})
    run = world.sync(entities=["domain"])
    assert re.search(r"│ domain/_id 4711 - +│ VALIDATION_ERROR: ", told(world, id_of(run)))


def test_text_from_outside_steers_nothing(world: World) -> None:
    world.add("tenant", {"id": STEERING, "name": "x", "version": 1})
    world.hub.misbehave({"code": "NOT_FOUND", "message": "[bold]no :key:[/bold]"})
    run = world.sync(entities=["tenant"], trigger=STEERING)

    for text in (told(world), told(world, id_of(run))):
        assert STEERING_SHOWN in text
        assert "\x1b" not in text
    row = cells(told(world, id_of(run), "--failed"), "NOT_FOUND: [bold]no :key:[/bold]")
    assert row[0].startswith(f"tenant/{STEERING_SHOWN} ")
    assert told_as_json(world)["runs"][0]["trigger"] == STEERING


def test_in_a_pipe_a_run_is_one_line_however_long(world: World) -> None:
    run, name = world.sync(entities=["tenant"]), " ".join(["long"] * 39)
    world.database.sync_runs.update_one({}, {"$set": {"flow_run_name": name}})
    (line,) = [line for line in told(world).splitlines() if line.startswith(id_of(run))]
    assert name in line


@pytest.mark.parametrize("columns", [60, 80, 120])
def test_on_a_terminal_text_is_folded_and_an_id_never(world: World, columns: int) -> None:
    world.add("tenant", {"id": "acme", "name": "Acme", "version": 1})
    world.hub.misbehave({"code": "NOT_FOUND", "message": " ".join(["long"] * 40)})
    run = world.sync(entities=["tenant"], trigger=" ".join(["reason"] * 25))

    listing = told_on_a_terminal(world, columns)
    assert "\x1b[31mfailed\x1b[0m" in listing
    details = told_on_a_terminal(world, columns, id_of(run))
    items = told_on_a_terminal(world, columns, "--not-in")
    story = told_on_a_terminal(world, columns, "acme")
    for shown in (listing, details, items, story):
        lines = re.sub(r"\x1b\[[\d;]*m", "", shown).splitlines()
        assert max(map(len, lines)) <= max(columns, 80)
        assert "…" not in shown
    assert id_of(run) in listing
    assert id_of(run) in details
    assert id_of(run) in story
    assert run.step("acme")["request_id"] in details
    assert run.step("acme")["request_id"] in story
    assert len(re.findall("long", details.partition("Failures")[2])) == 40


@pytest.mark.parametrize("arguments", [(), ("--json",)])
def test_a_reader_that_has_seen_enough_is_no_error(
    world: World, arguments: tuple[str, ...]
) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    answer = subprocess.run(
        [*COMMAND, *arguments],
        cwd=REPOSITORY,
        env=mongo_settings(world),
        stdout=writing,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    os.close(writing)
    assert answer.stderr == ""


@pytest.mark.parametrize("options", [(), ("--failed",), ("--changes",), ("--json",)])
@pytest.mark.parametrize("run_id", ["507f1f77bcf86cd799439011", "latest", ""])
def test_a_run_that_is_not_there(world: World, run_id: str, options: tuple[str, ...]) -> None:
    answer = history(world, run_id, *options)
    assert (answer.returncode, answer.stdout) == (2, "")
    assert run_id in answer.stderr
    assert "python -m scripts.history" in answer.stderr
    assert len(answer.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("--not-in", "acme"), "--not-in and --gone take no RUN_ID and no ITEM"),
        (("--gone", "acme"), "--not-in and --gone take no RUN_ID and no ITEM"),
        (("--changes",), "--changes asks for a RUN_ID"),
        (("--not-in", "--failed"), "not allowed with argument"),
    ],
)
def test_arguments_that_do_not_go_together(
    world: World, arguments: tuple[str, ...], complaint: str
) -> None:
    answer = history(world, *arguments)
    assert (answer.returncode, answer.stdout) == (2, "")
    assert complaint in answer.stderr


@pytest.mark.parametrize("limit", ["0", "-1", "many", "10001"])
def test_a_limit_that_is_none(world: World, limit: str) -> None:
    answer = history(world, f"--limit={limit}")
    assert (answer.returncode, answer.stdout) == (2, "")
    assert "--limit: must be a number from 1 to 10000" in answer.stderr


@pytest.mark.parametrize(
    ("variable", "value", "complaint"),
    [
        ("MONGODB_URI", "mongodb://127.0.0.1:9/?serverSelectionTimeoutMS=300", "not answer"),
        ("MONGODB_URI", "localhost", "is not a MongoDB URI"),
        ("MONGODB_DB", "a/b", "is wrong"),
    ],
)
def test_a_trail_that_can_not_be_read_is_told_in_one_line(
    world: World, variable: str, value: str, complaint: str
) -> None:
    answer = history(world, "--json", **{variable: value})
    assert (answer.returncode, answer.stdout) == (2, "")
    assert variable in answer.stderr
    assert complaint in answer.stderr
    assert len(answer.stderr.splitlines()) == 1
