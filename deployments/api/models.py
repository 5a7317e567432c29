"""Requests and answers of the REST API, beside the records of the audit trail."""

from http import HTTPStatus
from typing import Annotated, Any, Final

from pydantic import BaseModel, ConfigDict, Field, StrictBool

from deployments.api.errors import RUN_ID_EXAMPLE, Responses
from deployments.api.run_view import RunView
from tasks.entities import ENTITY_NAMES, EntityName, in_sync_order
from tasks.trail.history import StepPage
from tasks.trail.items import Confirmed, ItemRecord
from tasks.trail.runs import RunErrorRecord, RunOptions, SyncMode
from tasks.trail.stages import RunStatus, StageRecord, Totals
from tasks.trail.steps import StepRecord

API_TRIGGER: Final = "REST API"
_STATE: Final = "Prefect's name of the state of the run."


class SyncRequest(BaseModel):
    """A sync that is asked for."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", json_schema_extra={"examples": [{"entities": ["domain"]}]}
    )

    entities: Annotated[list[EntityName], Field(min_length=1)] = Field(
        default=ENTITY_NAMES, description="Entity types; whatever the order, run in sync order."
    )
    mode: SyncMode = Field(
        default=SyncMode.FULL,
        description="`full` sends every item, `changed` those that Stage 1 does not hold as they "
        "are.",
    )
    dry_run: StrictBool = Field(
        default=False, description="Read, validate and decide; send nothing."
    )
    skip_orphans: StrictBool = Field(
        default=False,
        description="Do not send an item whose parent failed in this run with a permanent error.",
    )
    disable_gone: StrictBool = Field(
        default=False,
        description="Disable what Stage 1 holds and whose document is gone from the source, unless "
        "more than a fifth of a type (and more than ten) are gone at once.",
    )

    trigger: Annotated[str, Field(max_length=200)] = Field(
        default=API_TRIGGER, description="Who or what asks for the sync, for the audit trail."
    )

    def options(self) -> RunOptions:
        """Return the options of the run."""
        entities = tuple(in_sync_order(self.entities))
        return RunOptions(
            self.trigger, entities, self.mode, self.dry_run, self.skip_orphans, self.disable_gone
        )


class RunAccepted(BaseModel):
    """Prefect has taken the request; `status` and `state` are those that the run shows."""

    model_config = ConfigDict(frozen=True)

    run_id: str = Field(examples=[RUN_ID_EXAMPLE])
    status: RunStatus = Field(examples=["running"])
    state: str | None = Field(description=_STATE)
    message: str


class RunStarted(RunAccepted):
    """A sync has been handed to Prefect."""

    state: str | None = Field(description=_STATE, examples=["Scheduled"])
    message: str = Field(examples=["Sync started"])


class RunCancelled(RunAccepted):
    """A sync is being cancelled, or is cancelled already."""

    state: str | None = Field(description=_STATE, examples=["Cancelling"])
    message: str = Field(examples=["The sync is being cancelled"])


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
    held_up_by: list[str] = Field(
        description="What makes a sync slower, or wait, for now.",
        examples=[["tenant sends 18 requests/s: Stage 1 throttles"]],
    )


def _example_of(record: type[BaseModel]) -> dict[str, Any]:
    """Return an example of a record, made of those of its fields."""
    return {
        name: (field.examples or [field.default])[0]
        for name, field in record.model_fields.items()
        if not field.exclude
    }


def _example(value: Any) -> Responses:
    return {HTTPStatus.OK.value: {"content": {"application/json": {"example": value}}}}


def _page_of(item: Any) -> dict[str, Any]:
    return {"page": 1, "limit": 50, "total": 1, "items": [item]}


_RUN_EXAMPLE: Final = {
    **_example_of(RunView),
    "totals": _example_of(Totals),
    "errors": [_example_of(RunErrorRecord)],
    "stages": [_example_of(StageRecord)],
}
RUN_RESPONSE: Final = _example(_RUN_EXAMPLE)
RUNS_RESPONSE: Final = _example(_page_of(_RUN_EXAMPLE))
_STEPS_EXAMPLE: Final = _page_of({**_example_of(StepRecord), "ok": False})
STEPS_RESPONSE: Final = _example({**_STEPS_EXAMPLE, "next": _example_of(StepPage)["next"]})
_CONFIRMED_EXAMPLE: Final = _example_of(Confirmed)
_ITEM_EXAMPLE: Final = {
    **_example_of(ItemRecord),
    "confirmed": _CONFIRMED_EXAMPLE,
    "last": {"ok": True, "error": None, "run_id": RUN_ID_EXAMPLE, "at": _CONFIRMED_EXAMPLE["at"]},
}
ITEMS_RESPONSE: Final = _example(_page_of(_ITEM_EXAMPLE))
ITEM_RESPONSE: Final = _example({"items": [_ITEM_EXAMPLE], "history": _STEPS_EXAMPLE})
