"""Contender "bare loop": a thread pool on one httpx.Client, no audit, no orchestration."""

import json
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import httpx

from tests.benchmarks.resource_usage import measured

Stage = dict[str, Any]


def send_all(stages: list[Stage], concurrency: int, token: str) -> None:
    """Post the bodies of one entity type after the other."""
    headers = {"Authorization": f"Bearer {token}"}
    with httpx.Client(headers=headers) as client, ThreadPoolExecutor(concurrency) as pool:

        def send(url: str, body: dict[str, Any]) -> None:
            response = client.post(url, json=body).raise_for_status()
            if not response.json()["ok"]:
                raise RuntimeError(response.text)

        for stage in stages:
            urls = [stage["url"]] * len(stage["bodies"])
            for _ in pool.map(send, urls, stage["bodies"]):
                pass


def main() -> None:
    (requests_file,) = sys.argv[1:]
    stages = json.loads(Path(requests_file).read_text())
    concurrency, token = int(os.environ["ADMIN_CONCURRENCY"]), os.environ["ADMIN_SYNC_TOKEN"]
    usage, _ = measured(lambda: send_all(stages, concurrency, token))
    print(json.dumps(asdict(usage)))


if __name__ == "__main__":
    main()
