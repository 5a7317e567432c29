"""The testbed of a measured run: a database with its documents, and a hub that has nothing."""

import json
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Final

from pymongo import MongoClient
from pymongo.database import Database

from tasks.entities import EntityType
from tasks.request import request_of
from tasks.source.item import Item, item_from
from tests.benchmarks.fast_hub import FastHub, fast_hub
from tests.benchmarks.parts import Parts, environment_without_settings
from tests.benchmarks.workload import Document, Workload

REPOSITORY: Final = Path(__file__).parents[2]
_DOCUMENTS_AT_ONCE: Final = 5_000
TOKEN: Final = "benchmark-token-7d3e"


@dataclass(frozen=True)
class Testbed:
    """The servers, the database and the hub that a contender works with."""

    parts: Parts
    workload: Workload
    hub: FastHub
    database: Database[Document]

    @property
    def environment(self) -> dict[str, str]:
        """The variables of a contender's process, without this machine's own settings."""
        return {
            **environment_of_sync(self.parts, self.database.name, self.hub.upsert_urls),
            "ADMIN_CONCURRENCY": str(self.workload.concurrency),
        }

    def write_requests(self) -> Path:
        """Write the requests that our flow would send, for contenders that read no database."""
        path = self.parts.scratch / f"{self.database.name}.json"
        urls = self.hub.upsert_urls
        stages = [
            {
                "entity_type": entity_type.name,
                "url": urls[entity_type.url_variable],
                "bodies": [
                    _request_body(entity_type, document)
                    for document in self.database[entity_type.collection].find()
                ],
            }
            for entity_type in self.workload.entity_types
        ]
        path.write_text(json.dumps(stages))
        return path


def environment_of_sync(
    parts: Parts, database_name: str, upsert_urls: Mapping[str, str]
) -> dict[str, str]:
    """Return the variables of a sync's process, without this machine's own settings."""
    return {
        **environment_without_settings(),
        "PYTHONPATH": str(REPOSITORY),
        "MONGODB_URI": parts.mongodb.address,
        "MONGODB_DB": database_name,
        "ADMIN_SYNC_TOKEN": TOKEN,
        **upsert_urls,
        "PREFECT_API_URL": parts.prefect.address,
        "PREFECT_HOME": str(parts.scratch / "prefect-client"),
        "PREFECT_SERVER_ALLOW_EPHEMERAL_MODE": "false",
        "DO_NOT_TRACK": "1",
    }


@contextmanager
def new_testbed(parts: Parts, workload: Workload) -> Iterator[Testbed]:
    """Fill a fresh database and start a fresh hub; both are removed afterwards."""
    name = f"benchmark_{uuid.uuid4().hex[:12]}"
    client: MongoClient[Document] = MongoClient(parts.mongodb.address, tz_aware=True)
    with client, fast_hub(parts.scratch / "hub.log", workload.latency_ms) as hub:
        _insert(client[name], workload)
        yield Testbed(parts, workload, hub, client[name])
        client.drop_database(name)


def _insert(database: Database[Document], workload: Workload) -> None:
    for entity_type in workload.entity_types:
        documents = workload.documents(entity_type)
        while chunk := list(islice(documents, _DOCUMENTS_AT_ONCE)):
            database[entity_type.collection].insert_many(chunk)


def _request_body(entity_type: EntityType, document: Document) -> Mapping[str, Any]:
    item = item_from(entity_type, document, now=0)
    assert isinstance(item, Item), "a generated document can't be sent"
    return {"request_id": request_of(item, None).request_id, entity_type.name: item.body}
