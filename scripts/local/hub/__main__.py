"""Runs a local Stage 1: the five upsert endpoints over MongoDB, with faults on demand."""

import argparse
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pydantic import SecretStr
from pymongo import MongoClient
from pymongo.errors import PyMongoError

from scripts.local.hub.active_faults import NO_FAULTS, faults_from_json
from scripts.local.hub.local_hub import LocalHub
from scripts.local.hub.manual import while_it_runs
from scripts.local.hub.messages import Document
from scripts.local.process import StartFailed, serve_until_stopped


@contextmanager
def _served(arguments: argparse.Namespace) -> Iterator[str]:
    token = os.environ.get("ADMIN_SYNC_TOKEN")
    if not token:
        raise StartFailed("Set ADMIN_SYNC_TOKEN to the token that the hub shall ask for.")
    if not arguments.mongodb_uri:
        raise StartFailed("Set MONGODB_URI, or give --mongodb-uri.")
    client: MongoClient[Document] = MongoClient(
        arguments.mongodb_uri, serverSelectionTimeoutMS=10_000
    )
    try:
        client.admin.command("ping")
    except PyMongoError as error:
        raise StartFailed(f"MongoDB does not answer ({type(error).__name__}).") from None
    path = arguments.faults
    with LocalHub(
        token=SecretStr(token),
        database=client[arguments.db],
        port=arguments.port,
        faults=faults_from_json(path.read_bytes()) if path else NO_FAULTS,
        latency_ms=arguments.latency_ms,
    ) as hub:
        yield f"local hub: {hub.base_url}"


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m scripts.local.hub",
        description=__doc__,
        epilog=while_it_runs(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--port", type=int, default=0, help="default: a free one")
    parser.add_argument(
        "--mongodb-uri", default=os.environ.get("MONGODB_URI"), help="default: MONGODB_URI"
    )
    parser.add_argument("--db", default="local_hub", help="database name; default: %(default)s")
    parser.add_argument("--faults", type=Path, help="JSON file with a list of faults")
    parser.add_argument("--latency-ms", type=int, default=0, help="added to each upsert")
    return serve_until_stopped(_served(parser.parse_args()))


if __name__ == "__main__":
    sys.exit(main())
