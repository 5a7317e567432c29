"""What the REST API takes and answers, beside the records of the audit trail."""

from http import HTTPStatus
from typing import Annotated, Any, Final

from pydantic import BaseModel, ConfigDict, Field

from tasks.audit import RunStatus
from tasks.entities import ENTITY_NAMES, EntityName

RUN_ID_EXAMPLE: Final = "507f1f77bcf86cd799439011"


class SyncRequest(BaseModel):
    """What to sync."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", json_schema_extra={"examples": [{"entities": ["domain"]}]}
    )

    entities: Annotated[list[EntityName], Field(min_length=1)] = Field(
        default=ENTITY_NAMES, description="Entity types; whatever the order, run in sync order."
    )


class RunStarted(BaseModel):
    """A sync has been handed to Prefect; `status` is that of the run's audit document."""

    model_config = ConfigDict(
        frozen=True,
        json_schema_extra={
            "examples": [{"run_id": RUN_ID_EXAMPLE, "status": "pending", "message": "Sync started"}]
        },
    )

    run_id: str
    status: RunStatus
    message: str


class ErrorDetail(BaseModel):
    """What is wrong: `code` for programs, `message` for people, `details` by code."""

    model_config = ConfigDict(frozen=True)

    code: str
    message: str
    details: dict[str, Any] = {}


class ErrorResponse(BaseModel):
    """The one shape of every error."""

    model_config = ConfigDict(frozen=True)

    error: ErrorDetail


class PartHealth(BaseModel):
    """Whether a part can be used, and if not, why."""

    model_config = ConfigDict(frozen=True)

    ok: bool
    message: str


class Health(BaseModel):
    """The parts that a sync needs; `ok` when all of them are."""

    model_config = ConfigDict(frozen=True)

    ok: bool
    mongodb: PartHealth
    prefect: PartHealth
    hub: PartHealth


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


def error_responses(*examples: ApiError) -> dict[int | str, dict[str, Any]]:
    """Describe errors for the OpenAPI document, each by an example."""
    return {
        int(example.status): {
            "model": ErrorResponse,
            "description": str(example),
            "content": {"application/json": {"example": example.body.model_dump()}},
        }
        for example in examples
    }
