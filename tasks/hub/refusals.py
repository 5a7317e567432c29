"""Refusals of the caller: whether a 401 or 403 is about the token, or about one item."""

from dataclasses import replace
from typing import Final

from tasks.errors import CLASS_BY_CODE, ErrorClass, ItemError
from tasks.hub.answer import UpsertOutcome

_ROW_THAT_STOPS: Final = 3
"""After so many such refusals in a row, over all senders, it is about the token."""


class Refusals:
    """Judges 401 and 403 without a known code by the other answers to a run's requests.

    A firewall in front of Stage 1 refuses some content with such a status; a wrong token, path or
    right refuses everything.
    """

    def __init__(self) -> None:
        self._has_accepted = False
        self._row = 0

    def judged(self, outcome: UpsertOutcome, *, was_out: bool) -> UpsertOutcome:
        """Return an outcome with its error as it is in the light of the answers before it.

        Args:
            outcome: as its answer alone tells.
            was_out: whether the item had not been in by an earlier run: then a refusal is no news.
        """
        error = outcome.error
        if error is None:
            self._has_accepted, self._row = True, 0
            return outcome
        if not _is_bare(error):
            self._row = self._row if outcome.is_transient else 0
            return outcome
        self._row += 1
        is_about_item = self._row < _ROW_THAT_STOPS and (self._has_accepted or was_out)
        if not is_about_item:
            return outcome
        error = ItemError(error.code, error.message, ErrorClass.PERMANENT)
        return replace(outcome, error=error)


def _is_bare(error: ItemError) -> bool:
    return error.error_class is ErrorClass.RUN_STOPPING and error.code not in CLASS_BY_CODE
