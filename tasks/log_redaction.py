"""Takes secrets out of all that this process logs."""

import logging
from collections.abc import Callable, Iterable
from functools import cache, lru_cache
from typing import Any, Final

from tasks.redaction import Redaction

SHORTEST_SECRET: Final = 6
"""A shorter one stays in logs: it would be found in words that tell nothing of it."""


def keep_out_of_logs(secrets: Iterable[str]) -> None:
    """Redact these secrets, in place of those given before, in what any logger logs from now on.

    A secret of fewer than six characters is not redacted.
    """
    known = frozenset(secret for secret in secrets if len(secret) >= SHORTEST_SECRET)
    _record_factory().redaction = _redaction_of(known)


class _RecordFactory:
    """Makes log records whose message, arguments and traceback hold no secret.

    They are redacted before any handler, filter or formatter sees them. What a record is given as
    `extra` is not.
    """

    def __init__(self, make: Callable[..., logging.LogRecord]) -> None:
        self._make = make
        self.redaction = Redaction(())

    def __call__(self, *args: Any, **kwargs: Any) -> logging.LogRecord:
        record = self._make(*args, **kwargs)
        self._redact_message(record)
        if record.stack_info:
            record.stack_info = self.redaction.redacted(record.stack_info)
        if record.exc_info:
            traceback = logging.Formatter().formatException(record.exc_info)
            redacted = self.redaction.redacted(traceback)
            if redacted != traceback:
                record.exc_info, record.exc_text = None, redacted
        return record

    def _redact_message(self, record: logging.LogRecord) -> None:
        record.msg = self._redacted_if_text(record.msg)
        if isinstance(record.msg, str) and not record.args:
            return
        if isinstance(record.args, tuple):  # not put into the message: formatters take them apart
            record.args = tuple(self._redacted_if_text(each) for each in record.args)
        try:
            message = record.getMessage()
        except Exception:  # noqa: BLE001
            return  # whatever it is, the handler tells of it
        redacted = self.redaction.redacted(message)
        if redacted != message:
            record.msg, record.args = redacted, ()

    def _redacted_if_text(self, value: Any) -> Any:
        return self.redaction.redacted(value) if isinstance(value, str) else value


@cache
def _record_factory() -> _RecordFactory:
    factory = _RecordFactory(logging.getLogRecordFactory())
    logging.setLogRecordFactory(factory)
    return factory


@lru_cache(maxsize=8)
def _redaction_of(secrets: frozenset[str]) -> Redaction:
    return Redaction(secrets)
