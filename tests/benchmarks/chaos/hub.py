"""The local hub on threads of this process, with the faults of a plan."""

import threading
import time
from typing import Final

from pydantic import SecretStr
from pymongo.database import Database

from scripts.local.hub import Fault, LocalHub
from scripts.local.hub.request_log import SeenRequest
from tasks.entities import ENTITY_TYPES
from tests.benchmarks.chaos.faults import FaultPlan
from tests.benchmarks.chaos.ledger import Accepted, ItemKey, Ledger
from tests.benchmarks.workload import Document

TOKEN: Final = "chaos-token-b85e"


class ChaosHub(LocalHub):
    """A local hub that can go down and stall; `begin` comes before the first request."""

    def __init__(self, database: Database[Document]) -> None:
        super().__init__(token=SecretStr(TOKEN), database=database)
        self._database = database
        self._is_awake = threading.Event()
        self._is_awake.set()

    def begin(self, plan: FaultPlan) -> None:
        """Forget everything and take another plan."""
        self.reset()

        def planned(seen: SeenRequest) -> Fault | None:
            self._is_awake.wait()
            fault = plan.fault(seen.request_id, seen.attempt)
            return fault.as_fault() if fault else None

        self.faults = planned

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

    def ledger(self) -> Ledger:
        items = {
            ItemKey(entity_type.name, document["_id"]): Accepted(
                document["request_id"], document["item"]
            )
            for entity_type in ENTITY_TYPES
            for document in self._database[entity_type.endpoint].find()
        }
        return Ledger(self.log.requests(), items)
