"""The one MongoDB client of a process, and what source and audit trail both need of it."""

from collections.abc import Callable
from functools import lru_cache, wraps
from typing import Any, ParamSpec, TypeVar

import bson
from bson.codec_options import CodecOptions
from pymongo import MongoClient
from pymongo.database import Database
from pymongo.errors import ConnectionFailure, PyMongoError

from tasks.settings import MongoSettings

Document = dict[str, Any]
Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")

_SERVER_SELECTION_TIMEOUT_MS = 10_000
"""How long a MongoDB that doesn't answer is waited for; a value in the URI wins."""


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


def is_connection_lost(error: object) -> bool:
    """Whether an error says that MongoDB was away, or has a new primary: another try may do."""
    return isinstance(error, (ConnectionFailure, MongoUnavailable))


def database(settings: MongoSettings) -> Database[Document]:
    """Return the backoffice database, on the one client that this process has for the URI."""
    return _client(settings.mongodb_uri.get_secret_value()).get_database(
        settings.mongodb_database, codec_options=CodecOptions(tz_aware=True)
    )


def identity(source_id: Any) -> bytes:
    """Return a hashable stand-in for an `_id`, which may be of any BSON type."""
    return bson.encode({"_id": source_id})


@lru_cache(maxsize=8)
def _client(uri: str) -> MongoClient[Document]:
    # To PyMongo a keyword argument would win over the URI.
    is_given = "serverselectiontimeoutms=" in uri.lower()
    patience: Document = (
        {} if is_given else {"serverSelectionTimeoutMS": _SERVER_SELECTION_TIMEOUT_MS}
    )
    try:
        return MongoClient(uri, appname="backoffice-sync", tz_aware=True, **patience)
    except (PyMongoError, ValueError) as error:
        raise MongoUnavailable(error) from None
