"""What holds a sync up, in words: the limit of requests, and what Stage 1 lets through."""

from collections.abc import Iterator, Mapping
from typing import Final

from prefect.client.schemas.responses import GlobalConcurrencyLimitResponse

_LIMIT: Final = "Prefect's concurrency limit of the requests to Stage 1"


def limit_in_words(limit: GlobalConcurrencyLimitResponse, size: int) -> Iterator[str]:
    """Yield how the limit of requests holds a sync up, if it does.

    Args:
        limit: the concurrency limit in Prefect.
        size: `ADMIN_CONCURRENCY`, to which each sync brings it when it begins.
    """
    # Its name tells the host of Stage 1, and health asks for no token.
    if not limit.active:
        yield f"{_LIMIT} is switched off: a sync switches it on before it sends"
    elif limit.limit == 0:
        yield f"{_LIMIT} is 0: a sync sets it to ADMIN_CONCURRENCY before it sends"
    elif limit.limit < size:
        yield f"{_LIMIT} is {limit.limit}: the next sync sets it to ADMIN_CONCURRENCY, {size}"


def paces_in_words(paces: Mapping[str, float]) -> Iterator[str]:
    """Yield what each running stage is held to; 0 is for one that waits."""
    for entity_type, pace in sorted(paces.items()):
        if pace:
            yield f"{entity_type} sends {pace:.0f} requests/s: Stage 1 throttles"
        else:
            yield f"{entity_type} waits: its endpoint is down, or asks for a pause (Retry-After)"
