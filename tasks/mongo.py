"""The one MongoDB client of a process, and how long it is waited for when MongoDB is away."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, wraps
from typing import Any, Concatenate, Final, ParamSpec, Protocol, TypeVar
from urllib.parse import parse_qsl, urlsplit

import bson
from bson.codec_options import CodecOptions, DatetimeConversion
from pymongo import MongoClient
from pymongo.database import Database
from pymongo.errors import ConnectionFailure, CursorNotFound, PyMongoError

from tasks.settings import MongoSettings

Document = dict[str, Any]
Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")

CODEC: Final[CodecOptions[Document]] = CodecOptions(
    tz_aware=True, datetime_conversion=DatetimeConversion.DATETIME_AUTO
)
"""A time that Python has no value for, such as one in the year 60000, is read as milliseconds."""
_PATIENCE_MS: Final = 30_000
"""How long a MongoDB that is away is waited for; `serverSelectionTimeoutMS` in the URI wins."""
_ATTEMPT_MS: Final = 1_000
"""How long one attempt waits for a server, so that all threads soon know that there is none."""
_PAUSE_SECONDS: Final = 0.1
_GIVEN_UP_SECONDS: Final = 1.0
"""How long MongoDB is not asked again once it has been given up."""
_LOST: Final = (ConnectionFailure, CursorNotFound)
"""What an operation raises when its server goes away, or has come back without its cursors."""


class MongoUnavailable(RuntimeError):
    """MongoDB can't be reached; the message names the variable, never the URI."""

    def __init__(self, cause: Exception) -> None:
        super().__init__(
            f"MongoDB does not answer ({type(cause).__name__}): "
            "check MONGODB_URI and that the server is up"
        )


def translating_errors(
    function: Callable[Parameters, Result],
) -> Callable[Parameters, Result]:
    """Make a function raise `MongoUnavailable` where PyMongo raises an error of its own."""

    @wraps(function)
    def translated(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Result:
        try:
            return function(*args, **kwargs)
        except PyMongoError as error:
            raise MongoUnavailable(error) from None

    return translated


class Patience:
    """How long a process waits for a MongoDB that is away: all its threads together, on one clock.

    Once it is spent, an operation is tried only once, and fails within about a second, until
    MongoDB answers again.
    """

    def __init__(self, client: MongoClient[Document], seconds: float) -> None:
        self._client = client
        self._seconds = seconds
        self._away_since: float | None = None
        self._given_up: PyMongoError | None = None
        self._given_up_until = 0.0

    def spend_on(self, operation: Callable[[], Result]) -> Result:
        """Carry out an idempotent operation, anew as long as MongoDB is away.

        Raises:
            MongoUnavailable: MongoDB stayed away.
            pymongo.errors.PyMongoError: MongoDB is there, and refuses.
        """
        failing_since: float | None = None
        while True:
            self._refuse_what_was_given_up()
            try:
                result = operation()
            except _LOST as error:
                now = time.monotonic()
                failing_since = failing_since or now
                self._bear(error, failing_since, now)
                time.sleep(_PAUSE_SECONDS)
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
            self.spend_on(lambda: self._client.admin.command("ping"))

    def _refuse_what_was_given_up(self) -> None:
        given_up = self._given_up
        if given_up is not None and time.monotonic() < self._given_up_until:
            raise MongoUnavailable(given_up)

    def _bear(self, error: PyMongoError, failing_since: float, now: float) -> None:
        away_since = self._away_since = self._away_since or now
        if now - away_since >= self._seconds:
            self._given_up, self._given_up_until = error, now + _GIVEN_UP_SECONDS
            raise MongoUnavailable(error) from None
        # MongoDB may answer all the while, and to others, but not this.
        if now - failing_since >= self._seconds:
            raise MongoUnavailable(error) from None


class _Patient(Protocol):
    _patience: Patience


Owner = TypeVar("Owner", bound=_Patient)


def patiently(
    method: Callable[Concatenate[Owner, Parameters], Result],
) -> Callable[Concatenate[Owner, Parameters], Result]:
    """Let an idempotent method wait for a MongoDB that is away; see `Patience.spend_on`."""

    @wraps(method)
    def patient(self: Owner, /, *args: Parameters.args, **kwargs: Parameters.kwargs) -> Result:
        return self._patience.spend_on(lambda: method(self, *args, **kwargs))

    return patient


def is_connection_lost(error: object) -> bool:
    """Whether an error says that MongoDB was away, or has a new primary: another try may do."""
    return isinstance(error, (ConnectionFailure, MongoUnavailable))


def database(settings: MongoSettings) -> Database[Document]:
    """Return the backoffice database, on the one client that this process has for the URI."""
    return _connection(settings.mongodb_uri.get_secret_value()).client.get_database(
        settings.mongodb_database, codec_options=CODEC
    )


def patience_with(settings: MongoSettings) -> Patience:
    """Return the patience that all of this process has with the MongoDB of the URI."""
    return _connection(settings.mongodb_uri.get_secret_value()).patience


def identity(source_id: Any) -> bytes:
    """Return a hashable stand-in for an `_id`, which may be of any BSON type."""
    return bson.encode({"_id": source_id})


@dataclass(frozen=True)
class _Connection:
    client: MongoClient[Document]
    patience: Patience


@lru_cache(maxsize=8)
def _connection(uri: str) -> _Connection:
    patience_ms = _patience_ms(uri)
    attempt_ms = min(patience_ms, _ATTEMPT_MS)
    try:
        client: MongoClient[Document] = MongoClient(
            uri, appname="backoffice-sync", tz_aware=True, serverSelectionTimeoutMS=attempt_ms
        )
    except (PyMongoError, ValueError) as error:
        raise MongoUnavailable(error) from None
    return _Connection(client, Patience(client, patience_ms / 1000))


def _patience_ms(uri: str) -> int:
    options = {name.lower(): value for name, value in parse_qsl(urlsplit(uri).query)}
    given = options.get("serverselectiontimeoutms", "")
    return int(given) if given.isdecimal() else _PATIENCE_MS
