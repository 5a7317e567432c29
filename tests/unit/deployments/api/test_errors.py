"""Whatever goes wrong, the answer has one shape and says nothing that it should not."""

import json

import httpx
import pytest
from fastapi import FastAPI
from pydantic import BaseModel

from deployments.api.errors import (
    NO_SUCH_RUN,
    SYNC_RUNNING,
    ErrorResponse,
    answer_errors_in_one_shape,
    error_response,
    error_responses,
)
from deployments.api.sync_deployment import PrefectUnavailable
from tasks.mongo_errors import MongoForbidden, MongoRefused, MongoUnavailable
from tasks.settings import SettingsError
from tests.unit.deployments.api.in_process import ask


class Asked(BaseModel):
    count: int


def answer_to(error: Exception) -> httpx.Response:
    app = FastAPI()
    answer_errors_in_one_shape(app)

    @app.get("/")
    def fail() -> None:
        raise error

    return ask(app, "GET", "/")


@pytest.mark.parametrize(
    ("error", "status", "code", "message"),
    [
        (NO_SUCH_RUN, 404, "NOT_FOUND", "There is no such run"),
        (MongoUnavailable("it is away"), 503, "UNAVAILABLE", "it is away"),
        (MongoForbidden("no right"), 503, "UNAVAILABLE", "no right"),
        (MongoRefused("a rule"), 503, "UNAVAILABLE", "a rule"),
        (PrefectUnavailable("no answer"), 503, "UNAVAILABLE", "no answer"),
        (
            RuntimeError("mongodb://user:marked@host"),
            500,
            "INTERNAL_ERROR",
            "Something went wrong here; the log of the API says what",
        ),
    ],
)
def test_an_error_of_an_operation(error: Exception, status: int, code: str, message: str) -> None:
    answer = answer_to(error)
    assert answer.status_code == status
    assert answer.json() == {"error": {"code": code, "message": message, "details": {}}}


def test_settings_that_are_wrong_are_named() -> None:
    answer = answer_to(SettingsError({"MONGODB_URI": "is missing"}))
    assert answer.status_code == 503
    assert "MONGODB_URI is missing" in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("method", "path", "content", "status", "code", "details"),
    [
        ("POST", "/", "{", 400, "BAD_REQUEST", []),
        ("POST", "/", '{"count": "many"}', 422, "VALIDATION_ERROR", ["body.count"]),
        ("GET", "/elsewhere", None, 404, "NOT_FOUND", []),
        ("GET", "/", None, 405, "METHOD_NOT_ALLOWED", []),
    ],
)
def test_an_error_of_the_request(
    method: str, path: str, content: str | None, status: int, code: str, details: list[str]
) -> None:
    app = FastAPI()
    answer_errors_in_one_shape(app)

    @app.post("/")
    def take(asked: Asked) -> int:
        return asked.count

    headers = {"Content-Type": "application/json"}
    answer = ask(app, method, path, content=content, headers=headers)
    assert answer.status_code == status
    error = ErrorResponse.model_validate(answer.json()).error
    assert (error.code, list(error.details)) == (code, details)
    assert answer.headers.get("Allow") == ("POST" if status == 405 else None)


def test_an_error_may_say_it_in_other_words() -> None:
    said = SYNC_RUNNING.saying("A sync is already under way: domain", {"run_id": "f" * 24})
    assert json.loads(bytes(error_response(said).body)) == {
        "error": {
            "code": "SYNC_RUNNING",
            "message": "A sync is already under way: domain",
            "details": {"run_id": "f" * 24},
        }
    }
    assert SYNC_RUNNING.body.error.message == "A sync is already under way"


def test_errors_are_described_by_an_example() -> None:
    described = error_responses(NO_SUCH_RUN, SYNC_RUNNING)
    assert list(described) == [404, 409]
    assert described[404]["description"] == "There is no such run"
    example = described[409]["content"]["application/json"]["example"]
    assert ErrorResponse.model_validate(example) == SYNC_RUNNING.body
