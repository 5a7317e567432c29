"""Ownership goes by MongoDB's clock and index: who lives, who is gone, and who has the turn."""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import pytest
from pymongo.database import Database

from tasks.trail.fields import RunAttempt, RunId
from tasks.trail.ownership import SILENT_SECONDS, Ownership, UnfinishedRun
from tasks.trail.runs import Runs
from tasks.trail.stages import UNFINISHED, RunStatus
from tests.trail_documents import OPTIONS, at, begin

Document = dict[str, Any]
THREADS = 8
SLACK = 20.0
"""Seconds that a slow machine may take between two steps of a test."""


@pytest.fixture
def open_run(runs: Runs) -> Callable[[str], RunId]:
    """Open the run of a flow run of that name."""
    return lambda name: runs.open(name, "its name", OPTIONS)


@pytest.fixture
def another_id(open_run: Callable[[str], RunId]) -> RunId:
    return open_run("another flow run")


def heard_of(database: Database[Document], run_id: RunId, seconds: float) -> None:
    """Let a run have been heard of so many seconds ago, by MongoDB's clock."""
    heard_at = {"$subtract": ["$$NOW", round(seconds * 1000)]}
    database.sync_runs.update_one({"_id": run_id}, [{"$set": {"alive_at": heard_at}}])


def unfinished(ownership: Ownership, run_id: RunId) -> UnfinishedRun:
    (found,) = [run for run in ownership.unfinished() if run.run_id == run_id]
    return found


def end(runs: Runs, run_id: RunId, seconds: float | None = None) -> None:
    run = runs.find(run_id)
    assert run is not None
    told = None if seconds is None else at(seconds)
    assert runs.end(run, RunStatus.SUCCESS, "", told, run.stages, [])


def at_once(calls: Sequence[Callable[[], Any]]) -> list[Any]:
    """Return the results of calls that begin together, each on a thread."""
    barrier = threading.Barrier(len(calls))

    def call(each: Callable[[], Any]) -> Any:
        barrier.wait()
        return each()

    with ThreadPoolExecutor(len(calls)) as pool:
        return list(pool.map(call, calls))


def test_a_second_run_has_the_turn_once_the_first_gives_it_up(
    runs: Runs, ownership: Ownership, run_id: RunId, another_id: RunId
) -> None:
    begin(ownership, run_id)
    assert ownership.take(another_id, OPTIONS, at(99)) is None
    assert ownership.holder() == run_id
    end(runs, run_id, 1)
    assert ownership.holder() is None
    begin(ownership, another_id)
    ownership.suspend(another_id, "", at(1))
    assert begin(ownership, run_id, since=2).number == 2
    assert ownership.holder() == run_id
    assert ownership.take(another_id, OPTIONS, at(2)) is None


def test_of_runs_that_begin_at_once_one_has_the_turn(
    ownership: Ownership, open_run: Callable[[str], RunId]
) -> None:
    run_ids = [open_run(str(number)) for number in range(THREADS)]
    calls = [partial(ownership.take, each, OPTIONS, at(0)) for each in run_ids]
    taken = [attempt for attempt in at_once(calls) if attempt is not None]
    assert [attempt.run_id for attempt in taken] == [ownership.holder()]


def test_of_processes_that_begin_one_run_at_once_the_last_keeps_it(
    ownership: Ownership, run_id: RunId
) -> None:
    taken: list[RunAttempt | None] = at_once(
        [partial(ownership.take, run_id, OPTIONS, at(0))] * THREADS
    )
    numbers = sorted(attempt.number for attempt in taken if attempt is not None)
    assert numbers == list(range(1, len(numbers) + 1))
    kept = [number for number in numbers if ownership.keep(RunAttempt(run_id, number))]
    assert kept == numbers[-1:]


def test_one_of_many_opens_a_run(runs: Runs, database: Database[Document]) -> None:
    for flow_run_id in map(str, range(5)):
        opened = at_once([partial(runs.open, flow_run_id, "its name", OPTIONS)] * THREADS)
        assert len(set(opened)) == 1
    assert database.sync_runs.count_documents({}) == 5


@pytest.mark.parametrize("how", ["take", "keep", "wait"])
def test_a_process_is_heard_of_by_mongodbs_clock(
    database: Database[Document], ownership: Ownership, run_id: RunId, how: str
) -> None:
    attempt = begin(ownership, run_id)
    heard_of(database, run_id, 3_600)
    assert unfinished(ownership, run_id).is_silent
    match how:
        case "take":
            begin(ownership, run_id)
        case "keep":
            assert ownership.keep(attempt)
        case "wait":
            ownership.wait(run_id, "it waits", at(5))
    silent_seconds = unfinished(ownership, run_id).silent_seconds
    assert silent_seconds is not None
    assert 0 <= silent_seconds < SLACK
    assert not unfinished(ownership, run_id).is_silent


@pytest.mark.parametrize("seconds", [0, SILENT_SECONDS - SLACK, SILENT_SECONDS, 3_600])
def test_a_process_is_silent_since_it_was_last_heard_of(
    database: Database[Document], ownership: Ownership, run_id: RunId, seconds: float
) -> None:
    begin(ownership, run_id)
    heard_of(database, run_id, seconds)
    run = unfinished(ownership, run_id)
    assert run.silent_seconds is not None
    assert seconds <= run.silent_seconds < seconds + SLACK
    assert run.is_silent is (seconds >= SILENT_SECONDS)


def test_an_earlier_attempt_is_heard_of_no_more(
    database: Database[Document], ownership: Ownership, run_id: RunId
) -> None:
    earlier = begin(ownership, run_id)
    begin(ownership, run_id)
    heard_of(database, run_id, 3_600)
    assert not ownership.keep(earlier)
    assert unfinished(ownership, run_id).is_silent


def test_a_run_without_a_process_has_not_spoken(
    database: Database[Document], ownership: Ownership, run_id: RunId
) -> None:
    not_begun = unfinished(ownership, run_id)
    assert (not_begun.silent_seconds, not_begun.is_silent) == (None, False)
    assert not_begun.flow_run_id == "a flow run"
    begin(ownership, run_id)
    heard_of(database, run_id, 3_600)
    ownership.suspend(run_id, "", at(1))
    suspended = unfinished(ownership, run_id)
    assert (suspended.silent_seconds, suspended.is_silent) == (None, False)
    assert suspended.mirrored_at == at(1)


def test_runs_without_a_terminal_status_are_unfinished_oldest_first(
    database: Database[Document], ownership: Ownership, open_run: Callable[[str], RunId]
) -> None:
    opened = {status: open_run(status) for status in RunStatus}
    for number, (status, run_id) in enumerate(opened.items()):
        change = {"status": status, "started_at": at(-number)}
        database.sync_runs.update_one({"_id": run_id}, {"$set": change})
    found = [(run.run_id, run.flow_run_id) for run in ownership.unfinished()]
    assert found == [(opened[status], str(status)) for status in reversed(UNFINISHED)]


def test_the_run_that_has_the_turn_comes_first_though_it_is_not_the_oldest(
    database: Database[Document], ownership: Ownership, run_id: RunId, another_id: RunId
) -> None:
    begin(ownership, another_id, since=100)
    database.sync_runs.update_one({"_id": run_id}, {"$set": {"started_at": at(1)}})
    assert [run.run_id for run in ownership.unfinished()] == [another_id, run_id]
    assert ownership.under_way() == another_id


def under_way_of(
    database: Database[Document], runs: Runs, ownership: Ownership, run_id: RunId, what: str
) -> None:
    """Bring a run into that condition."""
    match what:
        case "waiting":
            ownership.wait(run_id, "it waits", at(5))
        case "active":
            begin(ownership, run_id)
        case "suspended":
            begin(ownership, run_id)
            ownership.suspend(run_id, "", at(1))
        case "silent":
            begin(ownership, run_id)
            heard_of(database, run_id, SILENT_SECONDS)
        case "silent while it waits":
            ownership.wait(run_id, "it waits", at(5))
            heard_of(database, run_id, SILENT_SECONDS)
        case "ended":
            begin(ownership, run_id)
            end(runs, run_id)


@pytest.mark.parametrize(
    ("what", "is_under_way"),
    [
        ("pending", True),
        ("waiting", True),
        ("active", True),
        ("suspended", True),
        ("silent", False),
        ("silent while it waits", False),
        ("ended", False),
    ],
)
def test_a_run_is_under_way_unless_it_has_ended_or_its_process_is_gone(
    database: Database[Document],
    runs: Runs,
    ownership: Ownership,
    run_id: RunId,
    what: str,
    is_under_way: bool,
) -> None:
    under_way_of(database, runs, ownership, run_id, what)
    assert ownership.under_way() == (run_id if is_under_way else None)


def test_a_run_whose_process_is_gone_hides_no_other(
    database: Database[Document], ownership: Ownership, run_id: RunId, another_id: RunId
) -> None:
    begin(ownership, run_id)
    assert ownership.under_way() == run_id
    heard_of(database, run_id, SILENT_SECONDS)
    assert ownership.under_way() == another_id


def test_where_there_is_no_run_none_is_under_way(ownership: Ownership) -> None:
    assert ownership.under_way() is ownership.holder() is None
    assert ownership.unfinished() == []


def test_a_key_changes_with_each_new_run_and_with_nothing_else(
    database: Database[Document],
    runs: Runs,
    ownership: Ownership,
    open_run: Callable[[str], RunId],
) -> None:
    keys = [runs.next_key()]
    for number in range(3):
        run_id = open_run(str(number))
        keys.append(runs.next_key())
        open_run(str(number))
        begin(ownership, run_id)
        end(runs, run_id)
        assert runs.next_key() == keys[-1]
    assert len(set(keys)) == 4
    database.sync_runs.delete_one({"_id": run_id})
    open_run("another")
    assert runs.next_key() not in keys
