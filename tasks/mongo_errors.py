"""Errors of MongoDB as an operator needs them: not there, not allowed, or refused."""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

from pymongo.errors import (
    BulkWriteError,
    ConfigurationError,
    ConnectionFailure,
    CursorNotFound,
    OperationFailure,
    PyMongoError,
)

AWAY: Final = (ConnectionFailure, CursorNotFound)
"""Errors of a server that went away, or has come back without its cursors: another try may do."""
UNIQUE_INDEX: Final = 11000
"""MongoDB's code for a document whose unique key another one has."""
_UNAUTHORIZED: Final = 13
_AUTHENTICATION_FAILED: Final = 18
_VALIDATION: Final = 121
INDEX_CONFLICTS: Final = (85, 86)
"""MongoDB's codes for an index whose name or key another one has, with other options."""
_RIGHT: Final = re.compile(r'not authorized on (\S+) to execute command \{ (\w+): (?:"([^"]*)")?')
_UNIQUE: Final = re.compile(r"collection: (\S+) index: (\S+)")
_INDEX_NAME: Final = re.compile(r'name: \\?"([^"\\]+)')


class MongoError(RuntimeError):
    """MongoDB did not do what was asked; the message holds neither the URI nor a value."""


class MongoUnavailable(MongoError):
    """MongoDB can't be reached."""


class MongoForbidden(MongoError):
    """MongoDB does not let the user in, or lacks a right for it."""


class MongoRefused(MongoError):
    """MongoDB is there and refuses: an index, a rule or a limit of its own is in the way."""


@contextmanager
def mongo_errors() -> Iterator[None]:
    """Turn an error of PyMongo that leaves the block into a `MongoError`.

    Raises:
        MongoError: PyMongo raised an error.
    """
    try:
        yield
    except PyMongoError as error:
        raise mongo_error(error) from None


def mongo_error(error: PyMongoError) -> MongoError:
    """Return the error to tell an operator of."""
    cause = type(error).__name__
    if isinstance(error, AWAY):
        return MongoUnavailable(f"MongoDB does not answer ({cause}): {_what_to_check(str(error))}")
    if isinstance(error, ConfigurationError):
        return MongoUnavailable(f"MONGODB_URI can't be used ({cause}): check its host and options")
    fault = _first_fault(error)
    if fault.get("code") in (_UNAUTHORIZED, _AUTHENTICATION_FAILED):
        return MongoForbidden(_forbidden(cause, fault))
    return MongoRefused(f"MongoDB refuses ({cause}): {_reason(fault)}")


def _what_to_check(text: str) -> str:
    if "SSL handshake failed" in text or "CERTIFICATE_VERIFY_FAILED" in text:
        return "TLS fails: check the tls options of MONGODB_URI and the server's certificate"
    if "replica set name" in text:
        return "no member of the replica set that MONGODB_URI names is found: check replicaSet"
    if any(sign in text for sign in ("Primary()", "No primary", "not primary")):
        return "its replica set has no primary that can be reached: check the members of the set"
    return "check MONGODB_URI and that the server is up"


def _first_fault(error: PyMongoError) -> Mapping[str, Any]:
    """Return what MongoDB says of an error; of a bulk write, its first one."""
    details = (error.details if isinstance(error, OperationFailure) else None) or {}
    if not isinstance(error, BulkWriteError):
        return details
    faults = [*details.get("writeErrors", ()), *details.get("writeConcernErrors", ())]
    return faults[0] if faults else {}


def _forbidden(cause: str, fault: Mapping[str, Any]) -> str:
    if fault["code"] == _AUTHENTICATION_FAILED:
        return (
            f"MongoDB does not let the user of MONGODB_URI in ({cause}): "
            "check name, password and authSource in MONGODB_URI"
        )
    if right := _RIGHT.search(fault.get("errmsg", "")):
        database, command, collection = right.groups()
        place = f"{database}.{collection}" if collection else f"the database {database}"
        return (
            f"MongoDB does not allow {command} on {place} ({cause}): "
            "grant the user of MONGODB_URI that right"
        )
    return (
        f"MongoDB does not allow this without a user that may ({cause}): "
        "check that MONGODB_URI names one"
    )


def _reason(fault: Mapping[str, Any]) -> str:
    code, text = fault.get("code"), fault.get("errmsg", "")
    if code == UNIQUE_INDEX and (unique := _UNIQUE.search(text)):
        collection, index = unique.groups()
        return f"{collection} holds another document with this key (unique index {index})"
    if code == _VALIDATION:
        return "a document does not pass the validation rule (validator) of its collection"
    if code in INDEX_CONFLICTS:
        name = _INDEX_NAME.search(text)
        index = f" {name[1]}" if name else ""
        return f"the index{index} is there with other options: drop it, and it is made anew"
    known = [str(part) for part in (fault.get("codeName"), code) if part]
    return f"error {' '.join(known)}" if known else "it gives no code"
