"""BatchResult: the items of a batch by outcome, and what they mean to Prefect."""

from collections import Counter
from dataclasses import dataclass

from prefect.client.schemas.objects import State
from prefect.states import Completed, Failed

from tasks.errors import SUPERSEDED, ErrorClass, ItemError
from tasks.trail.stages import StageTotals


@dataclass(frozen=True)
class BatchResult:
    """Items of a batch by outcome; `to_retry` of the failed ones are worth a retry."""

    totals: StageTotals
    to_retry: int = 0
    first_error: ItemError | None = None

    def as_state(self) -> State["BatchResult"]:
        """Return the Prefect state of the batch's task run."""
        totals = self.totals
        left_alone = totals.unchanged + totals.would_send
        with_step = totals.wanted - left_alone
        counted = f"{totals.success} of {with_step} items are in"
        if left_alone:
            counted += f", {left_alone} were left alone"
        if self.first_error is None:
            return Completed(message=counted, data=self)
        why = f"{self.first_error.code}: {self.first_error.message}"
        return Failed(message=why if with_step == 1 else f"{counted}; {why}", data=self)


class BatchCount:
    """Counts the items of a batch by outcome, one after the other."""

    def __init__(self) -> None:
        self._items: Counter[str] = Counter()
        self._to_retry = 0
        self._first_to_send: str | None = None
        self._first_error: ItemError | None = None

    def add_outcome(self, error: ItemError | None) -> None:
        """Count an item that is in, or is not for that error."""
        if error is None:
            self._items["success"] += 1
            return
        if error.code == SUPERSEDED:
            self._items["superseded"] += 1
            return
        self._items["skipped" if error.error_class is ErrorClass.SKIPPED else "failed"] += 1
        self._to_retry += error.error_class is ErrorClass.TRANSIENT
        self._first_error = self._first_error or error

    def add_unchanged(self) -> None:
        """Count an item that an earlier run has sent."""
        self._items["unchanged"] += 1

    def add_would_send(self, natural_key: str) -> None:
        """Count an item that a real run would send."""
        self._items["would_send"] += 1
        self._first_to_send = self._first_to_send or natural_key

    def result(self) -> BatchResult:
        """Return the result of the items so far."""
        items = self._items
        totals = StageTotals(
            total=items.total(),
            success=items["success"],
            failed=items["failed"],
            skipped=items["skipped"]
            + items["unchanged"]
            + items["superseded"]
            + items["would_send"],
            unchanged=items["unchanged"],
            superseded=items["superseded"],
            would_send=items["would_send"],
            first=self._first_to_send,
        )
        return BatchResult(totals, self._to_retry, self._first_error)
