"""What the REST API takes and answers, beside the records of the audit trail."""

from http import HTTPStatus
from typing import Annotated, Any, Final

from pydantic import BaseModel, ConfigDict, Field

from tasks.entities import ENTITY_NAMES, EntityName, in_sync_order
from tasks.trail.audit import RunOptions, RunStatus, SyncMode

RUN_ID_EXAMPLE: Final = "507f1f77bcf86cd799439011"


_RUN_EXAMPLE: Final = {
    "id": RUN_ID_EXAMPLE,
    "status": "partial",
    "started_at": "2024-01-01T00:00:00.000Z",
    "finished_at": "2024-01-01T00:00:10.000Z",
    "totals": {"total": 5, "success": 4, "failed": 1, "skipped": 0},
    "errors": [
        {
            "entity_type": "domain",
            "natural_key": "pagos.semperaltius.edu.mx",
            "code": "NOT_FOUND",
            "message": "client semperaltius does not exist",
        }
    ],
    "mode": "full",
    "dry_run": False,
    "trigger": "REST API",
    "message": "1 of 5 items failed: NOT_FOUND (1)",
    "flow_run_id": "39f453ec-7ef3-4310-9f72-4de981dc45f3",
    "flow_run_name": "all entities - REST API",
    "stages": [
        {
            "entity_type": "domain",
            "status": "failed",
            "total": 1,
            "success": 0,
            "failed": 1,
            "skipped": 0,
            "unchanged": 0,
            "would_send": 0,
            "first": None,
            "started_at": "2024-01-01T00:00:06.000Z",
            "finished_at": "2024-01-01T00:00:08.000Z",
        }
    ],
}
_STEP_EXAMPLE: Final = {
    "id": "507f1f77bcf86cd799439012",
    "run_id": RUN_ID_EXAMPLE,
    "entity_type": "domain",
    "natural_key": "pagos.semperaltius.edu.mx",
    "source_id": "507f1f77bcf86cd799439013",
    "version": 1,
    "request_id": "bd5aebc6b4bd41b7dae2b8c05e57d2fa",
    "ok": False,
    "state": "Failed",
    "http_status": 404,
    "sync_id": None,
    "error": {
        "code": "NOT_FOUND",
        "message": "client semperaltius does not exist",
        "class": "permanent",
    },
    "attempts": 1,
    "duration_ms": 12.5,
    "flow_run_id": "39f453ec-7ef3-4310-9f72-4de981dc45f3",
    "task_run_id": "9c577579-8753-4d41-926b-45bbd5a3d081",
    "created_at": "2024-01-01T00:00:07.000Z",
    "updated_at": "2024-01-01T00:00:07.000Z",
}


class SyncRequest(BaseModel):
    """What to sync."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", json_schema_extra={"examples": [{"entities": ["domain"]}]}
    )

    entities: Annotated[list[EntityName], Field(min_length=1)] = Field(
        default=ENTITY_NAMES, description="Entity types; whatever the order, run in sync order."
    )
    mode: SyncMode = Field(
        default=SyncMode.FULL,
        description="`full` sends every item, `changed` those that no run has confirmed yet.",
    )
    dry_run: bool = Field(default=False, description="Read, validate and decide; send nothing.")
    skip_orphans: bool = Field(
        default=False,
        description="Do not send an item whose parent failed in this run with a permanent error.",
    )

    def options(self, trigger: str) -> RunOptions:
        """Return what is asked of the run."""
        entities = tuple(in_sync_order(self.entities))
        return RunOptions(trigger, entities, self.mode, self.dry_run, self.skip_orphans)


class RunAccepted(BaseModel):
    """Prefect has taken what was asked; `status` is that of the run's audit document."""

    model_config = ConfigDict(frozen=True)

    run_id: str
    status: RunStatus
    message: str


class RunStarted(RunAccepted):
    """A sync has been handed to Prefect."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"run_id": RUN_ID_EXAMPLE, "status": "pending", "message": "Sync started"}]
        },
    )


class RunCancelled(RunAccepted):
    """A sync is being cancelled, or is cancelled already."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "run_id": RUN_ID_EXAMPLE,
                    "status": "running",
                    "message": "The sync is being cancelled",
                }
            ]
        },
    )


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

    def saying(self, message: str, details: dict[str, Any] | None = None) -> "ApiError":
        """Return the same error with another message and other details."""
        return ApiError(self.status, self.body.error.code, message, details)


Responses = dict[int | str, dict[str, Any]]
"""What an operation answers, for the OpenAPI document."""


def _example(value: Any) -> Responses:
    return {HTTPStatus.OK.value: {"content": {"application/json": {"example": value}}}}


def _page_of(item: Any) -> dict[str, Any]:
    return {"page": 1, "limit": 50, "total": 1, "items": [item]}


RUN_RESPONSE: Final = _example(_RUN_EXAMPLE)
RUNS_RESPONSE: Final = _example(_page_of(_RUN_EXAMPLE))
STEPS_RESPONSE: Final = _example(_page_of(_STEP_EXAMPLE))


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
