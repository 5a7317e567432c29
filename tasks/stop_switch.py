"""StopSwitch: whether an attempt of a run still sends, as this process and all others know it."""

import logging
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Final

from prefect.exceptions import Abort, Pause

from tasks.errors import RUN_SUSPENDED, RUN_TAKEN_OVER, LeaveReason, StopReason
from tasks.hub.gate import SendGate
from tasks.mongo_errors import MongoError
from tasks.trail.fields import RunAttempt
from tasks.trail.stops import Stops

_logger: Final = logging.getLogger(__name__)


class StopSwitch:
    """Closes the gates of an attempt, for all processes that work on it or for this one alone.

    A run that is stopped goes on to its end, and skips what it has not sent. A run that this
    process has to leave ends elsewhere, or goes on there or later: `Abort` tells Prefect nothing.

    Args:
        attempt: the attempt.
        stops: the stops on record.
        gates: the gates of this process, by entity type.
    """

    def __init__(self, attempt: RunAttempt, stops: Stops, gates: Mapping[str, SendGate]) -> None:
        self._attempt = attempt
        self._stops = stops
        self._gates = gates
        self._lock = threading.Lock()
        self._stopped_because: StopReason | None = None
        self.left_because: LeaveReason | None = None

    def obey(self, reason: StopReason) -> None:
        """Stop the run, or leave it, as the reason says."""
        if isinstance(reason, LeaveReason):
            self.leave(reason)
        else:
            self.stop(reason)

    def stop(self, reason: StopReason) -> None:
        """Let nothing more be sent for this run, by this process or any other."""
        self._stopped_because = self._stopped_because or reason
        self._close_all(reason)
        self._stops.stop(self._attempt, reason)

    def stop_stage(self, entity_name: str, reason: StopReason) -> None:
        """Let nothing more of a type be sent in this run, by this process or any other."""
        self._gates[entity_name].close(reason)
        self._stops.stop_stage(self._attempt, entity_name, reason)

    def leave(self, reason: LeaveReason) -> None:
        """Let this process send nothing more for this run, and record no more of it."""
        with self._lock:
            is_news = self.left_because is None
            self.left_because = self.left_because or reason
        self._close_all(reason)
        if is_news:
            _logger.warning("This process leaves the run: %s", reason.message)

    def reason(self, entity_name: str | None = None) -> StopReason | None:
        """Return why this run, or that stage of it, was stopped; None if it was not.

        Raises:
            Abort: this process has to leave the run.
            MongoError: MongoDB is away, or does not let us.
        """
        here = self._gates[entity_name].closed_because if entity_name else self._stopped_because
        reason = self.left_because or self._stops.reason(self._attempt, entity_name) or here
        if isinstance(reason, LeaveReason):
            self.leave(reason)
            raise Abort(reason.message)
        return reason

    @contextmanager
    def thrown_by_errors(self) -> Iterator[None]:
        """Stop the run when the block is left by an exception, a cancellation included.

        Where Prefect suspends the run, or it is left, this process leaves it.
        """
        try:
            yield
        except Pause:
            self.leave(RUN_SUSPENDED)
            raise
        except Abort:
            self.leave(RUN_TAKEN_OVER)
            raise
        except BaseException as error:
            with suppress(MongoError):
                self.stop(StopReason(f"the run was interrupted ({type(error).__name__})"))
            raise

    def _close_all(self, reason: StopReason) -> None:
        for gate in self._gates.values():
            gate.close(reason)
