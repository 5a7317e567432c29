"""Contender "naive mapping": one mapped Prefect task run for each item, with an audit insert.

Each posts with `httpx.post`, as Prefect's tutorials do; with `--one-client` all share a client.
"""

import json
import os
import sys
from dataclasses import asdict
from typing import Any

import httpx
from prefect import flow, task
from prefect.futures import wait
from prefect.task_runners import TaskRunner, ThreadPoolTaskRunner

from tasks.entities import ENTITY_TYPES, EntityType
from tasks.mongo import database
from tasks.request import request_of
from tasks.settings import read_settings
from tasks.source.item import Item, item_from
from tests.benchmarks.resource_usage import measured

Request = dict[str, Any]

_settings = read_settings()
_database = database(_settings)
_headers = {"Authorization": f"Bearer {os.environ['ADMIN_SYNC_TOKEN']}"}
_post = httpx.Client().post if "--one-client" in sys.argv else httpx.post


@task
def send_item(request: Request) -> None:
    response = _post(request["url"], json=request["body"], headers=_headers).raise_for_status()
    step = {"request_id": request["body"]["request_id"], **response.json()}
    _database["naive_steps"].insert_one(step)


_threads: TaskRunner[Any] = ThreadPoolTaskRunner(max_workers=_settings.concurrency)


@flow(task_runner=_threads)
def naive_sync() -> None:
    for entity_type in ENTITY_TYPES:
        futures = send_item.map(_requests(entity_type))
        wait(futures)
        futures.result()


def _requests(entity_type: EntityType) -> list[Request]:
    url = _settings.upsert_url(entity_type)
    items = (
        item_from(entity_type, document, now=0)
        for document in _database[entity_type.collection].find()
    )
    return [
        {
            "url": url,
            "body": {"request_id": request_of(item, None).request_id, entity_type.name: item.body},
        }
        for item in items
        if isinstance(item, Item)
    ]


def main() -> None:
    usage, _ = measured(naive_sync)
    print(json.dumps(asdict(usage)))


if __name__ == "__main__":
    main()
