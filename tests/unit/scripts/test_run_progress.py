"""What is shown of a run while it goes on."""

import asyncio
from collections.abc import Sequence
from unittest.mock import Mock

import pytest

from scripts.run_progress import show_until_done
from tasks.mongo_errors import MongoUnavailable
from tasks.trail.runs import RunRecord
from tests.item_documents import run_document
from tests.trail_documents import at

PENDING = {"status": "pending", "message": "Waits for the sync of the day before to end"}
ENDED = {"status": "success", "started_at": at(0), "finished_at": at(1)}


def run_with(*stages: dict[str, object], **fields: object) -> RunRecord:
    return RunRecord.model_validate({**run_document(), "stages": list(stages), **fields})


def shown(
    seen: Sequence[RunRecord | Exception | None],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> list[str]:
    """Return the lines that are there once a run was seen so, and then was done."""
    monkeypatch.setattr("scripts.run_progress.REFRESH_SECONDS", 0)

    async def show() -> None:
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        left = list(seen)

        def look(_flow_run_id: str) -> RunRecord | None:
            if len(left) == 1:
                done.get_loop().call_soon_threadsafe(done.set_result, None)
            found = left.pop(0) if left else seen[-1]
            if isinstance(found, Exception):
                raise found
            return found

        await show_until_done(done, Mock(run_of=look), "a flow run", ["tenant", "client"])

    asyncio.run(show())
    return [line.rstrip() for line in capsys.readouterr().out.splitlines()]


def test_a_bar_tells_how_the_items_of_its_stage_stand(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    counts = {"total": 40, "success": 30, "failed": 2, "skipped": 4, "unchanged": 3, "retrying": 1}
    running = {"entity_type": "tenant", "status": "running", "started_at": at(0), **counts}
    tenant, client = shown([run_with(running)], monkeypatch, capsys)
    assert "tenant: 36 of 40 items: " in tenant
    for count in ("30 ok", "2 failed", "1 retrying", "3 unchanged", "1 skipped"):
        assert count in tenant
    assert client.endswith(" client")


def test_what_a_run_waits_for_is_told_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    waiting = run_with(**PENDING)
    other = run_with(**{**PENDING, "message": "Waits for another one"})
    lines = shown([waiting, waiting, other, run_with()], monkeypatch, capsys)
    assert lines[:2] == [PENDING["message"], "Waits for another one"]
    assert len(lines) == 4


def test_a_run_that_is_not_on_record_and_a_mongodb_that_is_away_stop_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ended = {"entity_type": "tenant", "total": 2, "success": 2, **ENDED}
    seen = [None, MongoUnavailable("away"), run_with(ended)]
    tenant, _ = shown(seen, monkeypatch, capsys)
    assert tenant.endswith("2 ok")
