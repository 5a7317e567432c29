"""Faults that stand for a whole run: a limiter in front of Stage 1, or an endpoint that is down."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from random import Random
from typing import Final, Self

from scripts.local.hub import Fault
from tasks.entities import ENTITY_NAMES
from tests.benchmarks.chaos.events import Event

_SLOWEST_LIMIT: Final = 25
_FASTEST_LIMIT: Final = 40
_BURSTS: Final = (0, 5)
_LIMITED_SECONDS: Final = 15
_THROTTLING: Final = (HTTPStatus.SERVICE_UNAVAILABLE, HTTPStatus.TOO_MANY_REQUESTS)


@dataclass(frozen=True)
class Limiter:
    """A limiter in front of all endpoints, as nginx's `limit_req`; it stays for the whole round."""

    requests_per_second: int
    status: int
    retry_after: str | None = None
    burst: int = 0
    event: Event = field(default=Event.LIMITER, init=False)

    @classmethod
    def drawn(cls, dice: Random) -> Self:
        """Return one at random: rate, status, whether it says when to come again, burst."""
        rate = dice.randint(_SLOWEST_LIMIT, _FASTEST_LIMIT)
        return cls(rate, dice.choice(_THROTTLING), dice.choice([None, "1"]), dice.choice(_BURSTS))

    @property
    def settings(self) -> Mapping[str, str]:
        """Settings of the sync: it waits as long as it is told to, as it does by default."""
        return {"ADMIN_RETRY_AFTER_MAX_MS": "60000"}

    @property
    def fault(self) -> Fault:
        return Fault(
            requests_per_second=self.requests_per_second,
            burst=self.burst,
            status=self.status,
            retry_after=self.retry_after,
        )

    def most_items(self, items: int) -> int:
        """Return as many of the items as it lets through in a reasonable time."""
        return min(items, self.requests_per_second * _LIMITED_SECONDS)

    def __str__(self) -> str:
        told = f" with Retry-After: {self.retry_after}" if self.retry_after else ""
        return f"limiter at {self.requests_per_second}/s, burst {self.burst}, {self.status}{told}"


@dataclass(frozen=True)
class EndpointDown:
    """One endpoint answers 500 or drops every request, until the first run has ended."""

    entity_type: str
    drops: bool
    event: Event = field(default=Event.ENDPOINT_DOWN, init=False)

    @classmethod
    def drawn(cls, dice: Random) -> Self:
        """Return one at random."""
        return cls(dice.choice(ENTITY_NAMES), dice.choice([True, False]))

    @property
    def settings(self) -> Mapping[str, str]:
        """Settings of the sync: it gives an endpoint up soon."""
        return {"ADMIN_BREAKER_PROBE_MS": "200", "ADMIN_BREAKER_LIMIT_MS": "2000"}

    @property
    def fault(self) -> Fault:
        if self.drops:
            return Fault(entity_type=self.entity_type, drop=True)
        return Fault(entity_type=self.entity_type, status=HTTPStatus.INTERNAL_SERVER_ERROR)

    def most_items(self, items: int) -> int:
        return items

    def __str__(self) -> str:
        misbehaviour = "drops every request" if self.drops else "answers 500"
        return f"endpoint-down, that of {self.entity_type} {misbehaviour}"


Standing = Limiter | EndpointDown
_KINDS: Final[Mapping[Event, type[Standing]]] = {
    Event.LIMITER: Limiter,
    Event.ENDPOINT_DOWN: EndpointDown,
}


def drawn_standing(event: Event, seed: int) -> Standing | None:
    """Return the standing fault that an event is, the same for the same seed; None for others."""
    kind = _KINDS.get(event)
    return kind.drawn(Random(f"{seed}|{event}")) if kind else None
