"""Conclusion: what a run or a stage came to, as a Prefect state."""

from typing import Any, Final

from prefect.client.schemas.objects import State, StateType
from prefect.states import Cancelled, Completed, Failed

from tasks.errors import GONE_TOO_MANY, RUN_CANCELLED, StopReason
from tasks.trail.stages import RunStatus, StageTotals, Tally

PARTIAL: Final = "Partial"
"""Name of the failed state of a run or stage of which some items are in."""
SKIPPED: Final = "Skipped"
"""Name of the cancelled state of a run of a schedule that another run stands in for."""
STOPPED: Final = "Stopped"
"""Name of the failed state of a run or stage that was stopped before all was sent."""


class SyncIncomplete(RuntimeError):
    """A run or a stage has come to its end, and not every item is in."""

    def __init__(self, message: str, totals: StageTotals) -> None:
        super().__init__(message)
        self.totals = totals

    def __reduce__(self) -> tuple[type["SyncIncomplete"], tuple[str, StageTotals]]:
        return type(self), (str(self), self.totals)


_STATUS_BY_TYPE: Final = {
    StateType.PAUSED: RunStatus.PENDING,
    StateType.RUNNING: RunStatus.RUNNING,
    StateType.COMPLETED: RunStatus.SUCCESS,
    StateType.FAILED: RunStatus.FAILED,
    StateType.CANCELLING: RunStatus.CANCELLED,
    StateType.CANCELLED: RunStatus.CANCELLED,
    StateType.CRASHED: RunStatus.CRASHED,
}


def status_of(state: State[Any]) -> RunStatus:
    """Return the audit trail's word for a Prefect state."""
    if state.is_failed() and state.name == PARTIAL:
        return RunStatus.PARTIAL
    return _STATUS_BY_TYPE[state.type]


def conclusion(
    tally: Tally, stopped_because: StopReason | None = None, *, is_dry_run: bool = False
) -> State[StageTotals]:
    """Return the Prefect state of a run or stage that has come to its end.

    Args:
        tally: its items by outcome.
        stopped_because: why the run was stopped, None where it was not.
        is_dry_run: whether nothing was to be sent.
    """
    totals = tally.totals
    if stopped_because == RUN_CANCELLED:
        return Cancelled(message=f"Cancelled: {_items_in(totals)}", data=totals)
    if is_dry_run:
        return _dry_conclusion(totals)
    if totals.outcome is RunStatus.SUCCESS:
        return Completed(message=_items_in(totals), data=totals)
    message = _failures(tally)
    if stopped_because is not None:
        message = f"Stopped by {stopped_because.message}. {message}"
    name = _name_of_failure(tally, is_stopped=stopped_because is not None)
    return Failed(name=name, message=message, data=SyncIncomplete(message, totals))


def _dry_conclusion(totals: StageTotals) -> State[StageTotals]:
    message = _would_do(totals)
    if totals.failed:
        return Failed(name=PARTIAL, message=message, data=SyncIncomplete(message, totals))
    return Completed(message=message, data=totals)


def _items_in(totals: StageTotals) -> str:
    unchanged = f", {totals.unchanged} of them unchanged and not sent" if totals.unchanged else ""
    return f"{totals.items_in} of {totals.wanted} items are in{unchanged}{_besides(totals)}"


def _besides(totals: StageTotals) -> str:
    superseded, gone = totals.superseded, totals.gone
    told = f"; {superseded} deleted duplicates are not sent" if superseded else ""
    return told + (f"; {gone} are gone from the source, and still enabled" if gone else "")


def _failures(tally: Tally) -> str:
    totals = tally.totals
    not_sent = totals.skipped - totals.unchanged - totals.superseded
    skipped = f" and {not_sent} were skipped" if not_sent else ""
    by_frequency = sorted(tally.codes.items(), key=lambda code: (-code[1], code[0]))
    codes = ", ".join(f"{code} ({count})" for code, count in by_frequency)
    failed = f"{totals.failed} of {totals.wanted} items failed{skipped}: {codes}"
    return failed + _besides(totals)


def _would_do(totals: StageTotals) -> str:
    message = f"Dry run: {totals.would_send} of {totals.wanted} items would be sent"
    if totals.unchanged:
        message += f", {totals.unchanged} are unchanged"
    if totals.failed:
        message += f", {totals.failed} would fail"
    return message + _besides(totals)


def _name_of_failure(tally: Tally, *, is_stopped: bool) -> str | None:
    if is_stopped:
        return STOPPED
    is_partial = tally.totals.outcome is RunStatus.PARTIAL and GONE_TOO_MANY not in tally.codes
    return PARTIAL if is_partial else None
