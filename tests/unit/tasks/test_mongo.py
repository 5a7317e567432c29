"""MongoRetry: how long operations are repeated while MongoDB is away, and when it is given up."""

import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from pymongo import MongoClient
from pymongo.errors import AutoReconnect, CursorNotFound, OperationFailure

from tasks.mongo import MongoRetry
from tasks.mongo_errors import MongoRefused, MongoUnavailable


@pytest.fixture
def client() -> Iterator[MongoClient[dict[str, Any]]]:
    with MongoClient("mongodb://127.0.0.1:9", connect=False, serverSelectionTimeoutMS=10) as client:
        yield client


def failing(times: int, error: Exception) -> tuple[Callable[[], str], list[float]]:
    """Return an operation that fails that often, and the list of its attempts."""
    attempts: list[float] = []

    def operation() -> str:
        attempts.append(time.monotonic())
        if len(attempts) <= times:
            raise error
        return "done"

    return operation, attempts


@pytest.mark.parametrize("error", [AutoReconnect("gone"), CursorNotFound("restarted")])
def test_an_operation_is_tried_until_mongodb_is_back(client: Any, error: Exception) -> None:
    operation, attempts = failing(2, error)
    assert MongoRetry(client, seconds=30).call(operation) == "done"
    assert len(attempts) == 3


def test_what_mongodb_refuses_is_not_tried_again(client: Any) -> None:
    operation, attempts = failing(1, OperationFailure("no"))
    with pytest.raises(MongoRefused):
        MongoRetry(client, seconds=30).call(operation)
    assert len(attempts) == 1


def test_once_the_time_is_up_others_fail_at_once_until_mongodb_is_back(client: Any) -> None:
    retry = MongoRetry(client, seconds=0.3)
    first, attempts = failing(1_000, AutoReconnect("mongodb://user:marked@host"))
    with pytest.raises(MongoUnavailable, match="check MONGODB_URI") as raised:
        retry.call(first)
    assert "marked" not in str(raised.value)
    assert len(attempts) > 1

    second, attempts = failing(0, AutoReconnect("gone"))
    with pytest.raises(MongoUnavailable):
        retry.call(second)
    assert attempts == []
    time.sleep(1.1)
    third, attempts = failing(1, AutoReconnect("gone"))
    with pytest.raises(MongoUnavailable):
        retry.call(third)
    assert len(attempts) == 1
    time.sleep(1.1)
    assert retry.call(third) == "done"
    fourth, attempts = failing(1, AutoReconnect("gone"))
    assert retry.call(fourth) == "done"


def test_an_operation_that_alone_fails_is_given_up_too(client: Any) -> None:
    retry = MongoRetry(client, seconds=0.3)

    def failing_while_others_succeed() -> None:
        retry.call(lambda: None)
        raise AutoReconnect("too large for the proxy")

    with pytest.raises(MongoUnavailable):
        retry.call(failing_while_others_succeed)
    retry.call(lambda: None)


def test_a_mongodb_that_never_answers_is_not_written_to(client: Any) -> None:
    with pytest.raises(MongoUnavailable):
        MongoRetry(client, seconds=0.1).await_mongodb()
