"""The local hub on threads of this process, with the faults of a plan."""

import threading
import time
from collections import Counter
from typing import Final

from pydantic import SecretStr
from pymongo.database import Database

from scripts.local.hub import Fault, LocalHub
from scripts.local.hub.active_faults import NO_FAULTS, ActiveFaults, FaultSource
from scripts.local.hub.messages import Answer, Upsert
from scripts.local.hub.request_log import SeenRequest
from tasks.entities import ENTITY_TYPES
from tests.benchmarks.chaos.faults import FaultPlan
from tests.benchmarks.chaos.ledger import Accepted, ItemKey, Ledger, Sender
from tests.benchmarks.workload import Document

_TOKEN: Final = "chaos-token-b85e"
NO_FAULT: Final = "none"
STANDING: Final = "standing"


def token_of(sender: Sender) -> str:
    """Return the token by which the hub knows a sender."""
    return f"{_TOKEN}.{sender}"


class ChaosHub(LocalHub):
    """A local hub that can go down and stall; `begin` comes before the first request.

    It takes the token of each sender.
    """

    def __init__(self, database: Database[Document]) -> None:
        super().__init__(token=SecretStr(_TOKEN), database=database)
        self._database = database
        self._is_awake = threading.Event()
        self._is_awake.set()
        self._standing: FaultSource = NO_FAULTS
        self._kinds: list[str] = []
        self._senders: dict[int, Sender] = {}

    def begin(self, plan: FaultPlan, *standing: Fault) -> None:
        """Forget everything and take another plan; standing faults come before it."""
        self.reset()
        self._standing = ActiveFaults(standing)
        self._kinds = []
        self._senders = {}

        def decided(seen: SeenRequest) -> Fault | None:
            self._is_awake.wait()
            if standing := self._standing(seen):
                self._kinds.append(STANDING)
                return standing
            planned = plan.fault(seen.request_id, seen.attempt)
            self._kinds.append(planned.kind if planned else NO_FAULT)
            return planned.as_fault() if planned else None

        self.faults = decided

    def mend(self) -> None:
        """Let the standing faults stand no longer."""
        self._standing = NO_FAULTS

    def go_down(self, seconds: float) -> None:
        """Refuse connections for that long, and cut those that are open; nothing is forgotten."""
        self.stop()
        time.sleep(seconds)
        self.start()

    def stall(self, seconds: float) -> None:
        """Let each request that comes in this time wait until its end."""
        self._is_awake.clear()
        time.sleep(seconds)
        self._is_awake.set()

    def has_seen(self, requests: int) -> bool:
        return self.log.stats()["requests"] >= requests

    def fault_counts(self) -> dict[str, int]:
        """Return how many requests had a fault of each kind, a standing one, or none."""
        return dict(Counter(self._kinds))

    def ledger(self) -> Ledger:
        items = {
            ItemKey(entity_type.name, document["_id"]): Accepted(
                document["request_id"], document["item"]
            )
            for entity_type in ENTITY_TYPES
            for document in self._database[entity_type.endpoint].find()
        }
        requests = self.log.requests()
        return Ledger(requests, items, [self._senders.get(id(seen)) for seen in requests])

    def _answer(self, seen: SeenRequest, upsert: Upsert, authorization: str | None) -> Answer:
        scheme, _, token = (authorization or "").partition(" ")
        known, _, sender = token.partition(".")
        if sender:
            self._senders[id(seen)] = Sender(*map(int, sender.split(".")))
        return super()._answer(seen, upsert, f"{scheme} {known}")
