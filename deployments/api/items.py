"""Items as they are now: what Stage 1 holds of them, and the story of each."""

from typing import Annotated

from fastapi import APIRouter, Query

from deployments.api.dependencies import SyncItems
from deployments.api.errors import (
    INVALID,
    NO_SUCH_ITEM,
    UNAUTHORIZED,
    UNAVAILABLE,
    error_responses,
)
from deployments.api.models import ITEM_RESPONSE, ITEMS_RESPONSE
from deployments.api.syncs import BEARER, PageLimit, PageNumber
from tasks.entities import EntityName
from tasks.trail.history import Page
from tasks.trail.item_history import ItemDetails, ItemEntry

router = APIRouter(
    prefix="/api/admin/sync/items",
    tags=["sync"],
    responses=error_responses(UNAUTHORIZED, INVALID, UNAVAILABLE),
    dependencies=[BEARER],
)


@router.get("", summary="List items", responses=ITEMS_RESPONSE)
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
    "/{entity_type}/{natural_key:path}",
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
