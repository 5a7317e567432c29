"""Items as they are now: what Stage 1 holds of them, what a run changed, the story of each."""

from typing import Annotated

from fastapi import APIRouter, Query

from deployments.api.dependencies import History, SyncItems
from deployments.api.errors import (
    INVALID,
    NO_SUCH_ITEM,
    NO_SUCH_RUN,
    UNAUTHORIZED,
    UNAVAILABLE,
    error_responses,
)
from deployments.api.models import ITEM_RESPONSE, ITEMS_RESPONSE
from deployments.api.syncs import BEARER, PageLimit, PageNumber, RunName, existing_run
from tasks.entities import EntityName
from tasks.trail.history import Page
from tasks.trail.item_history import ItemChange, ItemDetails, ItemEntry
from tasks.trail.items import ItemRecord

router = APIRouter(
    prefix="/api/admin/sync",
    tags=["sync"],
    responses=error_responses(UNAUTHORIZED, INVALID, UNAVAILABLE),
    dependencies=[BEARER],
)


@router.get("/items", summary="List items", responses=ITEMS_RESPONSE)
def list_items(
    items: SyncItems,
    is_in: Annotated[
        bool | None, Query(alias="in", description="Only items that are in now, or are not.")
    ] = None,
    entity_type: Annotated[EntityName | None, Query(description="Only items of this type.")] = None,
    gone: Annotated[
        bool | None, Query(description="Only items whose documents are gone, or are not.")
    ] = None,
    page: PageNumber = 1,
    limit: PageLimit = 50,
) -> Page[ItemEntry]:
    """Items of the Stage 1 that was sent to last; those that are not in, or gone, longest first."""
    return items.items(page, limit, is_in=is_in, entity_type=entity_type, gone=gone)


@router.get(
    "/runs/{run_id}/items",
    summary="List what a run changed",
    responses=ITEMS_RESPONSE | error_responses(NO_SUCH_RUN),
)
def list_changed_items(
    history: History,
    items: SyncItems,
    run_id: RunName,
    change: Annotated[
        ItemChange,
        Query(
            description="`newly-failing`: the run did not bring them in, and they have failed "
            "since then; `still-failing`: they have not been in since before it; `recovered`: it "
            "brought them in, and they were not in before; `gone`: their documents are gone from "
            "the source, and Stage 1 holds them enabled."
        ),
    ],
    page: PageNumber = 1,
    limit: PageLimit = 50,
) -> Page[ItemRecord]:
    """Items of a run's types that have newly failed, still fail, have recovered or are gone.

    They are told by what is on record of the items now: ask about the latest run.
    """
    return items.changed(existing_run(history, run_id), change, page, limit)


@router.get(
    "/items/{entity_type}/{natural_key:path}",
    summary="Show an item",
    responses=ITEM_RESPONSE | error_responses(NO_SUCH_ITEM),
)
def show_item(
    items: SyncItems,
    entity_type: EntityName,
    natural_key: str,
    page: PageNumber = 1,
    limit: PageLimit = 50,
) -> ItemDetails:
    """The record of an item for each Stage 1, and what came of it in all runs, newest first."""
    item = items.item(entity_type, natural_key, page, limit)
    if item is None:
        raise NO_SUCH_ITEM
    return item
