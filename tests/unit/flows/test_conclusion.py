"""Conclusion: what a run or a stage came to, as a Prefect state and as a status."""

import pickle

import pytest
from prefect.states import (
    Cancelled,
    Cancelling,
    Completed,
    Crashed,
    Failed,
    Pending,
    Running,
    Suspended,
)

from flows.conclusion import PARTIAL, STOPPED, SyncIncomplete, conclusion, status_of
from tasks.errors import RUN_CANCELLED, StopReason
from tasks.trail.stages import RunStatus, StageTotals, Tally

DOWN = StopReason("HUB_UNAVAILABLE: Stage 1 was down for 60 s")


def tally(
    success: int = 0,
    failed: int = 0,
    skipped: int = 0,
    unchanged: int = 0,
    would_send: int = 0,
    superseded: int = 0,
    gone: int = 0,
    **codes: int,
) -> Tally:
    not_sent = unchanged + would_send + superseded
    totals = StageTotals(
        total=success + failed + skipped + not_sent,
        success=success,
        failed=failed,
        skipped=skipped + not_sent,
        unchanged=unchanged,
        would_send=would_send,
        superseded=superseded,
        gone=gone,
    )
    return Tally(totals, codes)


@pytest.mark.parametrize(
    ("counted", "stopped", "state", "message"),
    [
        (tally(), None, "Completed", "0 of 0 items are in"),
        (tally(success=5), None, "Completed", "5 of 5 items are in"),
        (
            tally(success=1, unchanged=4),
            None,
            "Completed",
            "5 of 5 items are in, 4 of them unchanged and not sent",
        ),
        (
            tally(success=3, failed=3, NOT_FOUND=1, TIMEOUT=2),
            None,
            PARTIAL,
            "3 of 6 items failed: TIMEOUT (2), NOT_FOUND (1)",
        ),
        (
            tally(unchanged=1, failed=2, B=1, A=1),
            None,
            PARTIAL,
            "2 of 3 items failed: A (1), B (1)",
        ),
        (tally(failed=2, TIMEOUT=2), None, "Failed", "2 of 2 items failed: TIMEOUT (2)"),
        (
            tally(success=1, failed=1, skipped=3, TIMEOUT=1, RUN_STOPPED=3),
            DOWN,
            STOPPED,
            "Stopped by HUB_UNAVAILABLE: Stage 1 was down for 60 s. "
            "1 of 5 items failed and 3 were skipped: RUN_STOPPED (3), TIMEOUT (1)",
        ),
        (tally(success=2), DOWN, "Completed", "2 of 2 items are in"),
        (
            tally(success=1, skipped=1, RUN_STOPPED=1),
            RUN_CANCELLED,
            "Cancelled",
            "Cancelled: 1 of 2 items are in",
        ),
        (tally(success=2), RUN_CANCELLED, "Cancelled", "Cancelled: 2 of 2 items are in"),
        (
            tally(success=2, unchanged=1, superseded=2),
            None,
            "Completed",
            "3 of 3 items are in, 1 of them unchanged and not sent; "
            "2 deleted duplicates are not sent",
        ),
        (
            tally(success=2, gone=3),
            None,
            "Completed",
            "2 of 2 items are in; 3 are gone from the source, and still enabled",
        ),
        (
            tally(success=1, failed=1, skipped=1, superseded=2, gone=4, TIMEOUT=1, PARENT_FAILED=1),
            None,
            PARTIAL,
            "1 of 3 items failed and 1 were skipped: PARENT_FAILED (1), TIMEOUT (1); "
            "2 deleted duplicates are not sent; 4 are gone from the source, and still enabled",
        ),
        (
            tally(success=1, failed=1, gone=40, GONE_TOO_MANY=1),
            None,
            "Failed",
            "1 of 2 items failed: GONE_TOO_MANY (1); 40 are gone from the source, and still "
            "enabled",
        ),
    ],
)
def test_conclusion(counted: Tally, stopped: StopReason | None, state: str, message: str) -> None:
    concluded = conclusion(counted, stopped)
    assert (concluded.name, concluded.message) == (state, message)


@pytest.mark.parametrize(
    ("counted", "state", "message"),
    [
        (tally(would_send=5), "Completed", "Dry run: 5 of 5 items would be sent"),
        (
            tally(would_send=1, unchanged=3, failed=1, VALIDATION_ERROR=1),
            "Partial",
            "Dry run: 1 of 5 items would be sent, 3 are unchanged, 1 would fail",
        ),
        (
            tally(would_send=5, superseded=2, gone=1),
            "Completed",
            "Dry run: 5 of 5 items would be sent; 2 deleted duplicates are not sent; "
            "1 are gone from the source, and still enabled",
        ),
    ],
)
def test_a_dry_run_has_failed_where_an_item_would(counted: Tally, state: str, message: str) -> None:
    concluded = conclusion(counted, is_dry_run=True)
    assert (concluded.name, concluded.message) == (state, message)
    assert status_of(concluded) is (RunStatus.PARTIAL if state == "Partial" else RunStatus.SUCCESS)


def test_a_failure_carries_the_totals_even_to_another_process() -> None:
    concluded = conclusion(tally(success=1, failed=1, TIMEOUT=1))
    failure = pickle.loads(pickle.dumps(concluded.data))  # noqa: S301 - our own
    assert isinstance(failure, SyncIncomplete)
    assert str(failure) == "1 of 2 items failed: TIMEOUT (1)"
    assert (failure.totals.total, failure.totals.failed) == (2, 1)


@pytest.mark.parametrize(
    ("state", "status"),
    [
        (Suspended(), RunStatus.PENDING),
        (Running(), RunStatus.RUNNING),
        (Completed(), RunStatus.SUCCESS),
        (Failed(), RunStatus.FAILED),
        (Failed(name=PARTIAL), RunStatus.PARTIAL),
        (Failed(name=STOPPED), RunStatus.FAILED),
        (Completed(name=PARTIAL), RunStatus.SUCCESS),
        (Cancelling(), RunStatus.CANCELLED),
        (Cancelled(), RunStatus.CANCELLED),
        (Crashed(), RunStatus.CRASHED),
    ],
)
def test_status_of_a_state(state: object, status: RunStatus) -> None:
    assert status_of(state) is status  # type: ignore[arg-type]


def test_a_state_that_is_no_beginning_and_no_end_has_no_status() -> None:
    with pytest.raises(KeyError):
        status_of(Pending())
