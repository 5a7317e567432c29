"""1,000 items behind a limit of 20 requests a second: python -m tests.benchmarks.pace."""

import json
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product
from typing import Any, Final

from pydantic import SecretStr
from pymongo import MongoClient

from scripts.local.hub import Fault, LocalHub, upsert_urls
from scripts.local.hub.active_faults import ActiveFaults
from tests.benchmarks.parts import Parts, benchmark_parts
from tests.benchmarks.testbed import TOKEN, environment_of_sync

ITEMS: Final = 1_000
REQUESTS_PER_SECOND: Final = 20
REFUSALS: Final = {
    "503": Fault(requests_per_second=REQUESTS_PER_SECOND, status=503),
    "429": Fault(requests_per_second=REQUESTS_PER_SECOND, status=429),
    "429, Retry-After: 1": Fault(
        requests_per_second=REQUESTS_PER_SECOND, status=429, retry_after="1"
    ),
}
CONCURRENCIES: Final = (3, 16)


@dataclass(frozen=True)
class Paced:
    """What came of a run behind the limit."""

    seconds: float
    items_in: int
    requests: int
    refused: int

    def __str__(self) -> str:
        times_the_least = self.seconds * REQUESTS_PER_SECOND / ITEMS
        share = self.refused / self.requests
        return (
            f"{self.items_in} in {self.seconds:.1f} s, {times_the_least:.2f} times the least; "
            f"{self.refused} of {self.requests} requests refused, {share:.1%}"
        )


@contextmanager
def limited_hub(parts: Parts, refusal: Fault) -> Iterator[tuple[LocalHub, dict[str, str]]]:
    """Run a hub behind a limit, and fill a database; yield what a sync between them reads."""
    name = f"pace_{uuid.uuid4().hex[:12]}"
    client: MongoClient[dict[str, Any]] = MongoClient(parts.mongodb.address, tz_aware=True)
    hub = LocalHub(
        token=SecretStr(TOKEN), database=client[f"{name}_hub"], faults=ActiveFaults([refusal])
    )
    with client, hub:
        client[name]["source_tenants"].insert_many(
            {"id": f"tenant-{number:04}", "name": "A tenant", "version": 1}
            for number in range(ITEMS)
        )
        yield hub, environment_of_sync(parts, name, upsert_urls(hub.base_url))
        client.drop_database(name)
        client.drop_database(f"{name}_hub")


def paced(parts: Parts, refusal: Fault, concurrency: int) -> Paced:
    """Sync all items behind a limit that refuses like that."""
    with limited_hub(parts, refusal) as (hub, environment):
        parameters = json.dumps({"entities": ["tenant"]})
        outcome = subprocess.run(
            [sys.executable, "-m", "tests.benchmarks.our_sync", parameters],
            env={**environment, "ADMIN_CONCURRENCY": str(concurrency)},
            cwd=parts.scratch,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            check=True,
        )
        seen = hub.log.requests()
        statuses = [request.status for request in seen]
        return Paced(
            seconds=json.loads(outcome.stdout.splitlines()[-1])["seconds"],
            items_in=len({request.key for request in seen if request.status == 200}),
            requests=len(statuses),
            refused=sum(status != 200 for status in statuses),
        )


def main() -> None:
    with benchmark_parts() as parts:
        for (how, refusal), concurrency in product(REFUSALS.items(), CONCURRENCIES):
            print(f"{how:<20} concurrency {concurrency:>2}: {paced(parts, refusal, concurrency)}")


if __name__ == "__main__":
    main()
