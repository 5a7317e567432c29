"""Errors of PyMongo, with the texts that a MongoDB 6.0 gave, and what an operator is told."""

from typing import Any

import pytest
from pymongo.errors import (
    AutoReconnect,
    BulkWriteError,
    ConfigurationError,
    CursorNotFound,
    DuplicateKeyError,
    InvalidOperation,
    InvalidURI,
    NetworkTimeout,
    NotPrimaryError,
    OperationFailure,
    PyMongoError,
    ServerSelectionTimeoutError,
    WriteConcernError,
    WriteError,
)

from tasks.mongo_errors import (
    MongoError,
    MongoForbidden,
    MongoRefused,
    MongoUnavailable,
    mongo_error,
    mongo_errors,
)

MARKED = "marked"
"""Stands in the texts where a secret, a host or a value of a document would."""
COLLISION = "E11000 duplicate key error collection: t.runs index: k_1 dup key: { k: 'marked' }"
INDEX_CONFLICT = (
    "An existing index has the same name as the requested index. Requested index: "
    '{ v: 2, key: { k: 1 }, name: "k_1" }, existing index: { v: 2, unique: true, name: "k_1" }'
)
TOPOLOGY = (
    "Timeout: 0.5s, Topology Description: <TopologyDescription id: 1, topology_type: "
    "ReplicaSetNoPrimary, servers: [<ServerDescription ('marked', 27017)>]>"
)
HANDSHAKE = "SSL handshake failed: marked:27017: [SSL: UNEXPECTED_EOF_WHILE_READING] EOF"
CERTIFICATE = "marked:27017: [SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed"

UP = "check MONGODB_URI and that the server is up"
TLS = "TLS fails: check the tls options of MONGODB_URI and the server's certificate"
NO_PRIMARY = "its replica set has no primary that can be reached: check the members of the set"
URI = "check its host and options"


def failure(code: int, text: str, name: str = "") -> OperationFailure:
    details = {"ok": 0.0, "errmsg": text, "code": code, "codeName": name}
    return OperationFailure(text, code, details)


def unauthorized(command: str) -> OperationFailure:
    return failure(13, f"not authorized on t to execute command {{ {command} }}", "Unauthorized")


def bulk(*faults: dict[str, Any], lost: tuple[dict[str, Any], ...] = ()) -> BulkWriteError:
    written = {"op": {"q": {"k": MARKED}, "u": {"$set": {"secret": MARKED}}}}
    write_errors = [{"index": 0, **fault, **written} for fault in faults]
    return BulkWriteError({"writeErrors": write_errors, "writeConcernErrors": list(lost)})


def duplicate() -> DuplicateKeyError:
    details = {"code": 11000, "errmsg": COLLISION, "keyValue": {"k": MARKED}}
    return DuplicateKeyError(COLLISION, 11000, details)


@pytest.mark.parametrize(
    ("error", "what_to_check"),
    [
        (ServerSelectionTimeoutError(f"marked:27017: [Errno 111] refused, {TOPOLOGY}"), UP),
        (AutoReconnect("marked:27017: connection closed"), UP),
        (NetworkTimeout("marked:27017: timed out"), UP),
        (CursorNotFound("cursor id 7 not found", 43, {"code": 43}), UP),
        (ServerSelectionTimeoutError(f"{HANDSHAKE}, {TOPOLOGY}"), TLS),
        (AutoReconnect(CERTIFICATE), TLS),
        (
            ServerSelectionTimeoutError(
                f'No replica set members available for replica set name "marked", {TOPOLOGY}'
            ),
            "no member of the replica set that MONGODB_URI names is found: check replicaSet",
        ),
        (
            ServerSelectionTimeoutError(
                f'No replica set members match selector "Primary()", {TOPOLOGY}'
            ),
            NO_PRIMARY,
        ),
        (ServerSelectionTimeoutError(f"No primary available for writes, {TOPOLOGY}"), NO_PRIMARY),
        (NotPrimaryError("not primary", {"code": 10107, "errmsg": "not primary"}), NO_PRIMARY),
    ],
)
def test_a_mongodb_that_is_not_there(error: PyMongoError, what_to_check: str) -> None:
    told = mongo_error(error)
    assert type(told) is MongoUnavailable
    assert str(told) == f"MongoDB does not answer ({type(error).__name__}): {what_to_check}"


@pytest.mark.parametrize(
    "error",
    [
        ConfigurationError("The DNS query name does not exist: _mongodb._tcp.marked."),
        InvalidURI("Username and password must be escaped: mongodb://user:marked@host"),
    ],
)
def test_a_uri_that_can_not_be_used(error: PyMongoError) -> None:
    told = mongo_error(error)
    assert type(told) is MongoUnavailable
    assert str(told) == f"MONGODB_URI can't be used ({type(error).__name__}): {URI}"


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (
            unauthorized('findAndModify: "sync_runs", query: { k: "marked" }, $db: "t"'),
            "allow findAndModify on t.sync_runs (OperationFailure): "
            "grant the user of MONGODB_URI that right",
        ),
        (
            unauthorized('update: "sync_steps", ordered: true, $db: "t"'),
            "allow update on t.sync_steps (OperationFailure): "
            "grant the user of MONGODB_URI that right",
        ),
        (
            unauthorized('createIndexes: "sync_runs", indexes: [ { name: "marked" } ]'),
            "allow createIndexes on t.sync_runs (OperationFailure): "
            "grant the user of MONGODB_URI that right",
        ),
        (
            unauthorized('getMore: 7, $db: "t"'),
            "allow getMore on the database t (OperationFailure): "
            "grant the user of MONGODB_URI that right",
        ),
        (
            failure(13, "command find requires authentication", "Unauthorized"),
            "allow this without a user that may (OperationFailure): "
            "check that MONGODB_URI names one",
        ),
        (
            failure(18, "Authentication failed.", "AuthenticationFailed"),
            "let the user of MONGODB_URI in (OperationFailure): "
            "check name, password and authSource in MONGODB_URI",
        ),
    ],
)
def test_a_mongodb_that_does_not_allow_it(error: PyMongoError, words: str) -> None:
    told = mongo_error(error)
    assert type(told) is MongoForbidden
    assert str(told) == f"MongoDB does not {words}"


IN_THE_WAY = "t.runs holds another document with this key (unique index k_1)"
RULE = "a document does not pass the validation rule (validator) of its collection"
INVALID = {"code": 121, "errmsg": "Document failed validation", "errInfo": {"value": MARKED}}
NOT_DURABLE = {"code": 64, "codeName": "WriteConcernFailed", "errmsg": "timed out"}


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (duplicate(), IN_THE_WAY),
        (bulk({"code": 11000, "errmsg": COLLISION}), IN_THE_WAY),
        (failure(11000, f"Index build failed: 1: caused by :: {COLLISION}"), IN_THE_WAY),
        (WriteError("Document failed validation", 121, INVALID), RULE),
        (bulk(INVALID, {"code": 11000, "errmsg": COLLISION}), RULE),
        (
            failure(86, INDEX_CONFLICT, "IndexKeySpecsConflict"),
            "the index k_1 is there with other options: drop it, and it is made anew",
        ),
        (
            failure(85, "Index already exists with a different name", "IndexOptionsConflict"),
            "the index is there with other options: drop it, and it is made anew",
        ),
        (failure(2, "can't $divide 'marked' by zero", "BadValue"), "error BadValue 2"),
        (failure(11000, "of an unknown form: marked", "DuplicateKey"), "error DuplicateKey 11000"),
        (failure(11000, "of an unknown form: marked", ""), "error 11000"),
        (WriteConcernError("timed out", 64, NOT_DURABLE), "error WriteConcernFailed 64"),
        (bulk(lost=(NOT_DURABLE,)), "error WriteConcernFailed 64"),
        (bulk(), "it gives no code"),
        (OperationFailure("marked"), "it gives no code"),
        (InvalidOperation("marked"), "it gives no code"),
    ],
)
def test_a_mongodb_that_refuses(error: PyMongoError, reason: str) -> None:
    told = mongo_error(error)
    assert type(told) is MongoRefused
    assert str(told) == f"MongoDB refuses ({type(error).__name__}): {reason}"


def test_an_error_that_leaves_a_block_is_told_and_its_cause_is_not() -> None:
    with pytest.raises(MongoRefused) as raised, mongo_errors():
        raise duplicate()
    assert raised.value.__suppress_context__
    assert MARKED not in str(raised.value)
    with pytest.raises(KeyError), mongo_errors():
        raise KeyError
    assert issubclass(MongoRefused, MongoError)
