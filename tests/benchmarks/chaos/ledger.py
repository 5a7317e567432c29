"""The requests that Stage 1 has had in a round, and the items that it holds at its end."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf
from typing import Final

from scripts.local.hub.request_log import SeenRequest
from tests.benchmarks.workload import Document

_CONFIRMING: Final = frozenset({"stored", "repeated"})


@dataclass(frozen=True)
class ItemKey:
    """Entity type and natural key of an item."""

    entity_type: str
    natural_key: str

    def __str__(self) -> str:
        return f"{self.entity_type} {self.natural_key}"


@dataclass(frozen=True)
class Accepted:
    """An item that Stage 1 holds: its body, and the request that brought it."""

    request_id: str
    body: Document


@dataclass(frozen=True)
class Ledger:
    """The requests to Stage 1, in the order in which they came, and the accepted items."""

    requests: Sequence[SeenRequest]
    items: dict[ItemKey, Accepted]

    @property
    def digests(self) -> Mapping[str | None, set[str]]:
        """The digests of the bodies that came under each request id."""
        digests: defaultdict[str | None, set[str]] = defaultdict(set)
        for seen in self.requests:
            digests[seen.request_id].add(seen.digest)
        return digests

    @property
    def resent(self) -> int:
        """Number of requests that came after Stage 1 had confirmed their item to a client."""
        confirmed_at = {
            seen.request_id: seen.answered_at
            for seen in reversed(self.requests)
            if seen.answered_at and seen.outcome in _CONFIRMING and not seen.client_left
        }
        return sum(
            seen.received_at > confirmed_at.get(seen.request_id, inf) for seen in self.requests
        )
