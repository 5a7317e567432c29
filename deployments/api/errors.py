"""The errors of the REST API, all in one shape."""

from http import HTTPStatus
from typing import Any, Final

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict
from starlette.exceptions import HTTPException

from deployments.api.sync_deployment import PrefectUnavailable
from tasks.mongo_errors import MongoError
from tasks.settings import SettingsError

RUN_ID_EXAMPLE: Final = "507f1f77bcf86cd799439011"
Responses = dict[int | str, dict[str, Any]]
"""Answers of an operation, for the OpenAPI document."""


class ErrorDetail(BaseModel):
    """An error: `code` for programs, `message` for people, `details` by code."""

    model_config = ConfigDict(frozen=True)

    code: str
    message: str
    details: dict[str, Any] = {}


class ErrorResponse(BaseModel):
    """The one shape of every error."""

    model_config = ConfigDict(frozen=True)

    error: ErrorDetail


class ApiError(Exception):
    """An answer that is an error."""

    def __init__(
        self, status: HTTPStatus, code: str, message: str, details: dict[str, Any] | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.body = ErrorResponse(
            error=ErrorDetail(code=code, message=message, details=details or {})
        )

    def saying(self, message: str, details: dict[str, Any] | None = None) -> "ApiError":
        """Return the same error with another message and other details."""
        return ApiError(self.status, self.body.error.code, message, details)


UNAUTHORIZED: Final = ApiError(
    HTTPStatus.UNAUTHORIZED, "UNAUTHORIZED", "This API asks for its bearer token"
)
NO_SUCH_RUN: Final = ApiError(HTTPStatus.NOT_FOUND, "NOT_FOUND", "There is no such run")
NO_SUCH_ITEM: Final = ApiError(
    HTTPStatus.NOT_FOUND, "NOT_FOUND", "Nothing is on record of such an item"
)
INVALID: Final = ApiError(
    HTTPStatus.UNPROCESSABLE_ENTITY,
    "VALIDATION_ERROR",
    "The request is wrong",
    {"query.page": "Input should be greater than or equal to 1"},
)
UNREADABLE: Final = ApiError(HTTPStatus.BAD_REQUEST, "BAD_REQUEST", "The body is no JSON")
BODY_TOO_LARGE: Final = ApiError(
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "BODY_TOO_LARGE", "The body is longer than 64 KiB"
)
UNAVAILABLE: Final = ApiError(
    HTTPStatus.SERVICE_UNAVAILABLE,
    "UNAVAILABLE",
    "MongoDB does not answer (ServerSelectionTimeoutError): "
    "check MONGODB_URI and that the server is up",
)
SYNC_RUNNING: Final = ApiError(
    HTTPStatus.CONFLICT, "SYNC_RUNNING", "A sync is already under way", {"run_id": RUN_ID_EXAMPLE}
)
RUN_FINISHED: Final = ApiError(
    HTTPStatus.CONFLICT, "RUN_FINISHED", "The run has ended: there is nothing left to cancel"
)
FOREIGN_PAGE: Final = ApiError(
    HTTPStatus.FORBIDDEN, "FORBIDDEN", "A page of another site may change nothing here"
)
FOREIGN_NAME: Final = ApiError(
    HTTPStatus.FORBIDDEN,
    "FORBIDDEN",
    "Without ADMIN_API_TOKEN this API answers only to localhost, 127.0.0.1, [::1] "
    "and the ADMIN_API_HOST that is set",
)


def error_responses(*examples: ApiError) -> Responses:
    """Describe errors for the OpenAPI document, each by an example."""
    return {
        int(example.status): {
            "model": ErrorResponse,
            "description": str(example),
            "content": {"application/json": {"example": example.body.model_dump()}},
        }
        for example in examples
    }


def answer_errors_in_one_shape(app: FastAPI) -> None:
    """Let every error that an operation raises become an `ErrorResponse`."""

    @app.exception_handler(ApiError)
    async def refuse(request: Request, error: ApiError) -> JSONResponse:
        return error_response(error)

    @app.exception_handler(RequestValidationError)
    async def refuse_invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        faults = error.errors()
        if any(fault["type"] == "json_invalid" for fault in faults):
            return error_response(UNREADABLE)
        details = {".".join(map(str, fault["loc"])): fault["msg"] for fault in faults}
        return error_response(INVALID.saying(str(INVALID), details))

    @app.exception_handler(HTTPException)
    async def refuse_http(request: Request, error: HTTPException) -> JSONResponse:
        status = HTTPStatus(error.status_code)
        response = error_response(ApiError(status, status.name, status.description))
        response.headers.update(error.headers or {})
        return response

    @app.exception_handler(SettingsError)
    @app.exception_handler(MongoError)
    @app.exception_handler(PrefectUnavailable)
    async def refuse_unavailable(request: Request, error: Exception) -> JSONResponse:
        return error_response(UNAVAILABLE.saying(str(error)))

    @app.exception_handler(Exception)
    async def refuse_unexpected(request: Request, error: Exception) -> JSONResponse:
        status = HTTPStatus.INTERNAL_SERVER_ERROR
        message = "Something went wrong here; the log of the API says what"
        return error_response(ApiError(status, "INTERNAL_ERROR", message))


def error_response(error: ApiError) -> JSONResponse:
    """Return an error as an HTTP response."""
    return JSONResponse(error.body.model_dump(), status_code=error.status)
