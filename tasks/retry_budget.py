"""RetryBudget: how many of a run's requests may be retries, so that they don't feed an overload."""

import logging
import threading
from typing import Final

_logger = logging.getLogger(__name__)

RETRY_SHARE: Final = 0.2
"""Retries stay under this share of a run's requests (the retry budget of Finagle and gRPC)."""
RETRIES_FREE: Final = 100
"""So many retries a run has in any case: a small one keeps all of its own."""


class RetryBudget:
    """The budget of one process for one run."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._requests = 0
        self._retries = 0
        self._has_told = False

    def count_request(self) -> None:
        """Count a request, the first for its item or a retry."""
        with self._lock:
            self._requests += 1

    def take_retry(self) -> bool:
        """Take one retry from the budget; False, and one log line a run, when it is spent."""
        with self._lock:
            if self._retries < RETRIES_FREE or self._is_under_share():
                self._retries += 1
                return True
            is_news, self._has_told = not self._has_told, True
        if is_news:
            _logger.warning(
                "The retry budget is spent (%d of %d requests were retries): "
                "more items that failed transiently are left to the next run",
                self._retries,
                self._requests,
            )
        return False

    def _is_under_share(self) -> bool:
        return self._retries + 1 < RETRY_SHARE * (self._requests + 1)
