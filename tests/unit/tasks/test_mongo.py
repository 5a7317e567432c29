"""How long operations are repeated while MongoDB is away, and the one client of a process."""

import time
from collections.abc import Callable, Iterator
from typing import Any
from unittest.mock import Mock

import pytest
from pymongo import MongoClient
from pymongo.errors import AutoReconnect, CursorNotFound, OperationFailure

from tasks.mongo import MongoRetry, database, identity, mongo_operation, mongo_retry
from tasks.mongo_errors import MongoRefused, MongoUnavailable
from tasks.settings import MongoSettings, read_mongo_settings


@pytest.fixture
def client() -> Iterator[MongoClient[dict[str, Any]]]:
    with MongoClient[dict[str, Any]](
        "mongodb://127.0.0.1:9", connect=False, serverSelectionTimeoutMS=10
    ) as client:
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
    retry = MongoRetry(client, seconds=1)
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


def test_mongodb_is_asked_only_after_something_failed() -> None:
    there = Mock(**{"topology_description.has_writable_server.return_value": True})
    retry, ping = MongoRetry(there, seconds=30), there.admin.command

    def failing_once() -> None:
        retry.await_mongodb()
        if not ping.called:
            raise AutoReconnect("gone")

    retry.call(failing_once)
    retry.await_mongodb()
    ping.assert_called_once_with("ping")


class Sum:
    """Something that speaks to MongoDB, which fails at first."""

    def __init__(self, retry: MongoRetry) -> None:
        self._retry = retry
        self.calls: list[int] = []

    @mongo_operation
    def of(self, number: int, *, twice: bool = False) -> int:
        """Return a sum."""
        self.calls.append(number)
        if len(self.calls) == 1:
            raise AutoReconnect("gone")
        return number * (2 if twice else 1)


def test_a_method_that_is_an_operation_waits_for_mongodb(client: Any) -> None:
    counted = Sum(MongoRetry(client, seconds=30))
    assert counted.of(3, twice=True) == 6
    assert counted.calls == [3, 3]
    assert Sum.of.__doc__ == "Return a sum."


@pytest.fixture
def settings_of(monkeypatch: pytest.MonkeyPatch) -> Callable[..., MongoSettings]:
    def settings(uri: str, name: str = "backoffice") -> MongoSettings:
        monkeypatch.setenv("MONGODB_URI", uri)
        monkeypatch.setenv("MONGODB_DB", name)
        return read_mongo_settings()

    return settings


def test_a_process_has_one_client_for_a_uri(settings_of: Callable[..., MongoSettings]) -> None:
    here, there = "mongodb://127.0.0.1:9", "mongodb://127.0.0.1:10"
    first, second = database(settings_of(here)), database(settings_of(here, name="other"))
    assert (first.name, second.name) == ("backoffice", "other")
    assert first.client is second.client is not database(settings_of(there)).client
    assert mongo_retry(settings_of(here)) is mongo_retry(settings_of(here, name="other"))
    assert first.codec_options.tz_aware


@pytest.mark.parametrize("option", ["serverSelectionTimeoutMS", "SERVERSELECTIONTIMEOUTMS"])
def test_the_uri_says_how_long_operations_are_repeated(
    settings_of: Callable[..., MongoSettings], option: str
) -> None:
    retry = mongo_retry(settings_of(f"mongodb://127.0.0.1:9/?w=1&{option}=200"))
    operation, attempts = failing(1_000, AutoReconnect("gone"))
    with pytest.raises(MongoUnavailable):
        retry.call(operation)
    assert 2 <= len(attempts) <= 4


@pytest.mark.parametrize(
    ("uri", "cause"),
    [
        ("mongodb://user:marked%zz@host", "InvalidURI"),
        ("mongodb://marked,host/?directConnection=true", "ConfigurationError"),
        (f"mongodb://host/?tls=true&tlsCAFile={__file__}", "ConfigurationError"),
    ],
)
def test_a_uri_that_can_not_be_used_is_told_without_it(
    settings_of: Callable[..., MongoSettings], uri: str, cause: str
) -> None:
    with pytest.raises(MongoUnavailable) as raised:
        database(settings_of(uri))
    assert str(raised.value) == f"MONGODB_URI can't be used ({cause}): check its host and options"


@pytest.mark.parametrize(
    ("option", "named"),
    [
        ("tlsCAFile", "tlsCAFile"),
        ("TLSCERTIFICATEKEYFILE", "tlsCertificateKeyFile"),
        ("tlsCRLFile", "tlsCRLFile"),
    ],
)
def test_a_file_for_tls_that_is_not_there_is_told_by_its_option(
    settings_of: Callable[..., MongoSettings], option: str, named: str
) -> None:
    with pytest.raises(MongoUnavailable) as raised:
        database(settings_of(f"mongodb://host/?tls=true&{option}=/no/marked%20file"))
    assert str(raised.value) == (
        f"MONGODB_URI can't be used: the file that its option {named} names"
        " can't be read (No such file or directory)"
    )
    assert raised.value.__suppress_context__


@pytest.mark.parametrize("source_id", [{"a": [1]}, [1], "a", 1.5, float("nan"), None])
def test_an_id_of_any_type_has_an_identity(source_id: Any) -> None:
    assert {identity(source_id): 1}[identity(source_id)]


def test_ids_of_two_types_are_two() -> None:
    ids = [1, True, "1", b"1", None]
    assert len({identity(source_id) for source_id in ids}) == len(ids)
