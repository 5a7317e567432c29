"""The one MongoDB client of a process, whose operations are repeated while MongoDB is away."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache, wraps
from pathlib import Path
from typing import Any, Concatenate, Final, ParamSpec, Protocol, TypeVar
from urllib.parse import parse_qsl, urlsplit

import bson
from bson.codec_options import CodecOptions, DatetimeConversion
from pymongo import MongoClient, ReadPreference
from pymongo.database import Database
from pymongo.errors import ConfigurationError, PyMongoError
from pymongo.read_concern import ReadConcern

from tasks.mongo_errors import AWAY, MongoUnavailable, mongo_error, mongo_errors
from tasks.settings import MongoSettings

Document = dict[str, Any]
Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")

CODEC: Final[CodecOptions[Document]] = CodecOptions(
    tz_aware=True, datetime_conversion=DatetimeConversion.DATETIME_AUTO
)
"""Reads a time that Python has no value for, such as one in the year 60000, as milliseconds."""
_RETRY_MS: Final = 30_000
"""How long operations are repeated; `serverSelectionTimeoutMS` in the URI wins."""
_ATTEMPT_MS: Final = 1_000
"""How long one attempt waits for a server, so that all threads soon know that there is none."""
_PAUSE_SECONDS: Final = 0.1
_TLS_FILES: Final = ("tlsCAFile", "tlsCertificateKeyFile", "tlsCRLFile")
_GIVEN_UP_SECONDS: Final = 1.0
"""How long MongoDB is not asked again once it has been given up."""


class MongoRetry:
    """Repeats operations while MongoDB is away: all threads of a process, on one clock.

    Once the time is up, an operation is tried only once, and fails within about a second, until
    MongoDB answers again.
    """

    def __init__(self, client: MongoClient[Document], seconds: float) -> None:
        self._client = client
        self._seconds = seconds
        self._away_since: float | None = None
        self._given_up: PyMongoError | None = None
        self._given_up_until = 0.0

    def call(self, operation: Callable[[], Result]) -> Result:
        """Carry out an idempotent operation, again and again as long as MongoDB is away.

        Raises:
            MongoUnavailable: MongoDB stayed away.
            MongoError: MongoDB is there, and does not allow it or refuses.
        """
        failing_since: float | None = None
        while True:
            self._fail_if_given_up()
            try:
                result = operation()
            except AWAY as error:
                now = time.monotonic()
                failing_since = failing_since or now
                self._fail_if_time_is_up(error, failing_since, now)
                time.sleep(_PAUSE_SECONDS)
            except PyMongoError as error:
                raise mongo_error(error) from None
            else:
                self._away_since = self._given_up = None
                return result

    def await_mongodb(self) -> None:
        """Return once MongoDB takes writes: at once, without asking it, as long as all is well.

        Raises:
            MongoUnavailable: MongoDB stayed away.
        """
        is_there = self._client.topology_description.has_writable_server()
        if not is_there or self._away_since is not None:
            self.call(lambda: self._client.admin.command("ping"))

    def _fail_if_given_up(self) -> None:
        given_up = self._given_up
        if given_up is not None and time.monotonic() < self._given_up_until:
            raise mongo_error(given_up)

    def _fail_if_time_is_up(self, error: PyMongoError, failing_since: float, now: float) -> None:
        away_since = self._away_since = self._away_since or now
        if now - away_since >= self._seconds:
            self._given_up, self._given_up_until = error, now + _GIVEN_UP_SECONDS
            raise mongo_error(error) from None
        # MongoDB may answer all the while, and to others, but not this.
        if now - failing_since >= self._seconds:
            raise mongo_error(error) from None


class _Owner(Protocol):
    _retry: MongoRetry


Owner = TypeVar("Owner", bound=_Owner)


def mongo_operation(
    method: Callable[Concatenate[Owner, Parameters], Result],
) -> Callable[Concatenate[Owner, Parameters], Result]:
    """Let an idempotent method wait for a MongoDB that is away; see `MongoRetry.call`.

    Every method that speaks to MongoDB and that others call wears it.
    """

    @wraps(method)
    def repeated(self: Owner, /, *args: Parameters.args, **kwargs: Parameters.kwargs) -> Result:
        return self._retry.call(lambda: method(self, *args, **kwargs))

    return repeated


def database(settings: MongoSettings) -> Database[Document]:
    """Return the backoffice database, on the one client that this process has for the URI.

    Raises:
        MongoUnavailable: the URI can't be used.
    """
    return _connection(settings.mongodb_uri.get_secret_value()).client.get_database(
        settings.mongodb_database, codec_options=CODEC
    )


def trail_database(settings: MongoSettings) -> Database[Document]:
    """Return the backoffice database for the audit trail, which decides what is done.

    It is read from the primary, and only what a majority has, whatever the URI prefers.

    Raises:
        MongoUnavailable: the URI can't be used.
    """
    return database(settings).with_options(
        read_preference=ReadPreference.PRIMARY, read_concern=ReadConcern("majority")
    )


def mongo_retry(settings: MongoSettings) -> MongoRetry:
    """Return what repeats this process's operations on the MongoDB of the URI."""
    return _connection(settings.mongodb_uri.get_secret_value()).retry


def identity(source_id: Any) -> bytes:
    """Return a hashable stand-in for an `_id`, which may be of any BSON type."""
    return bson.encode({"_id": source_id})


@dataclass(frozen=True)
class _Connection:
    client: MongoClient[Document]
    retry: MongoRetry


@lru_cache(maxsize=8)
def _connection(uri: str) -> _Connection:
    options = {name.lower(): value for name, value in parse_qsl(urlsplit(uri).query)}
    retry_ms = _retry_ms(options)
    _require_tls_files(options)
    try:
        with mongo_errors():
            client: MongoClient[Document] = MongoClient(
                uri,
                appname="backoffice-sync",
                tz_aware=True,
                serverSelectionTimeoutMS=min(retry_ms, _ATTEMPT_MS),
            )
    except (OSError, ValueError) as error:
        raise mongo_error(ConfigurationError(type(error).__name__)) from None
    return _Connection(client, MongoRetry(client, retry_ms / 1000))


def _retry_ms(options: Mapping[str, str]) -> int:
    given = options.get("serverselectiontimeoutms", "")
    return int(given) if given.isdecimal() else _RETRY_MS


def _require_tls_files(options: Mapping[str, str]) -> None:
    named = {option: options[option.lower()] for option in _TLS_FILES if option.lower() in options}
    for option, path in named.items():
        try:
            Path(path).open("rb").close()
        except OSError as error:
            raise MongoUnavailable(
                f"MONGODB_URI can't be used: the file that its option {option} names"
                f" can't be read ({error.strerror})"
            ) from None
