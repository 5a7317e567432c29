"""What holds a sync up, as health tells it."""

from uuid import uuid4

import pytest
from prefect.client.schemas.responses import GlobalConcurrencyLimitResponse

from deployments.api.held_up import limit_in_words, paces_in_words

LIMIT = "Prefect's concurrency limit of the requests to Stage 1"


@pytest.mark.parametrize(
    ("size", "active", "told"),
    [
        (3, True, []),
        (7, True, []),
        (3, False, [f"{LIMIT} is switched off: a sync switches it on before it sends"]),
        (0, False, [f"{LIMIT} is switched off: a sync switches it on before it sends"]),
        (0, True, [f"{LIMIT} is 0: a sync sets it to ADMIN_CONCURRENCY before it sends"]),
        (2, True, [f"{LIMIT} is 2: the next sync sets it to ADMIN_CONCURRENCY, 3"]),
    ],
)
def test_a_limit_holds_a_sync_up_where_it_is_not_as_the_setting_says(
    size: int, active: bool, told: list[str]
) -> None:
    limit = GlobalConcurrencyLimitResponse(
        id=uuid4(),
        created=None,
        updated=None,
        name="admin-sync-requests-marked.example",
        limit=size,
        active=active,
        active_slots=1,
        slot_decay_per_second=0.0,
    )
    assert list(limit_in_words(limit, 3)) == told


def test_stages_that_are_held_to_a_pace_and_those_that_wait_are_told() -> None:
    assert list(paces_in_words({"tenant": 18.4, "client": 0.0})) == [
        "client waits: its endpoint is down, or asks for a pause (Retry-After)",
        "tenant sends 18 requests/s: Stage 1 throttles",
    ]
    assert list(paces_in_words({})) == []
