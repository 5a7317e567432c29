"""The requests that Stage 1 has had in a round, and the items that it holds at its end."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from itertools import groupby
from math import inf
from typing import Final, Self

from scripts.local.hub.request_log import SeenRequest
from tests.benchmarks.workload import Document

_CONFIRMING: Final = frozenset({"stored", "repeated"})
_CUT: Final = "dropped"
_THROTTLED: Final = frozenset({HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE})


@dataclass(frozen=True)
class ItemKey:
    """Entity type and natural key of an item."""

    entity_type: str
    natural_key: str

    @classmethod
    def of(cls, seen: SeenRequest) -> Self:
        """Return the item that a request was for."""
        return cls(seen.entity_type, seen.key or "")

    def __str__(self) -> str:
        return f"{self.entity_type} {self.natural_key}"


@dataclass(frozen=True)
class Accepted:
    """An item that Stage 1 holds: its body, and the request that brought it."""

    request_id: str
    body: Document


@dataclass(frozen=True)
class Sender:
    """Who has sent a request: a run of the round, counted from 1, or a later part of it."""

    run: int
    part: int = 1

    def __str__(self) -> str:
        return f"{self.run}.{self.part}"


@dataclass(frozen=True)
class Silence:
    """A time, in seconds since the epoch, in which a sender has to be silent."""

    sender: Sender
    since: float
    until: float = inf


@dataclass(frozen=True)
class Ledger:
    """The requests to Stage 1, in the order in which they came, and the accepted items.

    `senders` are those of the requests, in the same order.
    """

    requests: Sequence[SeenRequest]
    items: dict[ItemKey, Accepted]
    senders: Sequence[Sender | None] = ()

    @property
    def turns(self) -> Counter[int]:
        """How many times each run has begun to send, counted anew after each other run."""
        runs = (sender.run for sender in self.senders if sender)
        return Counter(run for run, _ in groupby(runs))

    def sent_in(self, silence: Silence) -> list[ItemKey]:
        """Return for which items requests came of a sender that had to be silent."""
        return [
            ItemKey.of(seen)
            for seen, sender in zip(self.requests, self.senders, strict=False)
            if sender == silence.sender and silence.since < seen.received_at < silence.until
        ]

    @property
    def digests(self) -> Mapping[str | None, set[str]]:
        """The digests of the bodies that came under each request id."""
        digests: defaultdict[str | None, set[str]] = defaultdict(set)
        for seen in self.requests:
            digests[seen.request_id].add(seen.digest)
        return digests

    @property
    def resent(self) -> int:
        """Number of requests that came after Stage 1 had confirmed their item to a client.

        But for those of a run that went on after a later one: it sends all, whatever that has sent.
        """
        senders = [*self.senders, *[None] * (len(self.requests) - len(self.senders))]
        confirmed = {
            seen.request_id: (seen.answered_at, sender.run if sender else 0)
            for seen, sender in reversed(list(zip(self.requests, senders, strict=True)))
            if seen.answered_at and seen.outcome in _CONFIRMING and not seen.client_left
        }
        never = (inf, 0)
        return sum(
            seen.received_at > at and not (sender and sender.run < run)
            for seen, sender in zip(self.requests, senders, strict=True)
            for at, run in [confirmed.get(seen.request_id, never)]
        )

    @property
    def throttled(self) -> int:
        """Number of requests that came too early for Stage 1."""
        return sum(seen.status in _THROTTLED for seen in self.requests)

    @property
    def fewest_attempts(self) -> Counter[ItemKey]:
        """The least number of attempts in which the requests for each item may have come.

        An attempt is one request, or two where the connection of the first is cut: to the client
        it may be one that was closed before, and then it sends once more on a new one.
        """
        attempts: Counter[ItemKey] = Counter()
        cut: set[ItemKey] = set()
        for seen in self.requests:
            item = ItemKey.of(seen)
            if item in cut:
                cut.remove(item)
                continue
            attempts[item] += 1
            if seen.outcome == _CUT:
                cut.add(item)
        return attempts
