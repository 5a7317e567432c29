"""The parts that a sync needs, on this machine, for whatever the settings don't name."""

import os
import secrets
from contextlib import ExitStack
from pathlib import Path
from typing import Final

from dotenv import dotenv_values
from pydantic import SecretStr
from rich.console import Console

from scripts.local.hub import LocalHub, upsert_urls
from scripts.local.mongod import local_mongod
from scripts.local.prefect import local_prefect_server, one_authority
from scripts.local.process import free_port, is_free
from scripts.local.started_servers import Server
from scripts.seed_source import seed_source
from tasks.entities import ENTITY_TYPES
from tasks.mongo import database
from tasks.settings import read_mongo_settings

LOCAL: Final = Path(__file__).parents[2] / ".local"
SERVERS: Final = LOCAL / "serve.json"
"""Names the servers that `./scripts/serve` has started, while it is up."""
_MONGODB_PORT: Final = LOCAL / "mongodb.port"
"""Remembers the port of the local MongoDB, so that its URI stays the same from start to start."""
_HIGHEST_PORT: Final = 65_535
_console: Final = Console()


def start_missing_parts(parts: ExitStack, prefect_port: int | None = None) -> dict[Server, str]:
    """Start a part for each setting that neither the environment nor `.env` names.

    What is started is named in the environment of this process, and stopped by `parts`.
    Returns which servers these are. The one of Prefect takes a free port unless told which.

    Raises:
        StartFailed: a part did not start.
        SettingsError: a setting that is named is malformed.
        MongoError: the MongoDB that is named doesn't answer.
    """
    named = named_settings()
    started: dict[Server, str] = {}
    if "MONGODB_URI" not in named:
        started["MONGODB_URI"] = _start_mongodb(parts)
    if named.keys().isdisjoint(entity_type.url_variable for entity_type in ENTITY_TYPES):
        _start_hub(parts, named.get("ADMIN_SYNC_TOKEN") or secrets.token_urlsafe())
    if "PREFECT_API_URL" not in named:
        started["PREFECT_API_URL"] = _start_prefect(parts, prefect_port)
    return started


def named_settings() -> dict[str, str]:
    """Return what `.env` and the environment, which wins, say; an empty value says nothing."""
    settings = {**dotenv_values(".env"), **os.environ}
    return {name: value for name, value in settings.items() if value}


def _start_mongodb(parts: ExitStack) -> str:
    remembered = _remembered_port()
    port = remembered if remembered and is_free(remembered) else free_port()
    with _console.status("Starting MongoDB"):
        uri = parts.enter_context(local_mongod(LOCAL / "mongodb", port))
    _MONGODB_PORT.write_text(str(port))
    if remembered not in (None, port):
        _console.print(f"Port {remembered} is taken: from now on, MongoDB has port {port}.")
    os.environ["MONGODB_URI"] = uri
    inserted = seed_source(read_mongo_settings())
    _console.print(f"MongoDB        {uri} ({inserted} of the seed's documents were new)")
    return uri


def _remembered_port() -> int | None:
    try:
        port = int(_MONGODB_PORT.read_text())
    except (OSError, ValueError):
        return None
    return port if 0 < port <= _HIGHEST_PORT else None


def _start_hub(parts: ExitStack, token: str) -> None:
    settings = read_mongo_settings()
    hub = LocalHub(
        token=SecretStr(token),
        database=database(settings).client[f"{settings.mongodb_database}_hub"],
    )
    parts.enter_context(hub)
    os.environ["ADMIN_SYNC_TOKEN"] = token
    os.environ.update(upsert_urls(hub.base_url))
    _console.print(f"Stage 1 hub    {hub.base_url}")


def _start_prefect(parts: ExitStack, port: int | None) -> str:
    with _console.status("Starting the Prefect server"):
        api_url = parts.enter_context(local_prefect_server(LOCAL / "prefect", port))
    os.environ["PREFECT_API_URL"] = api_url
    os.environ.setdefault("PREFECT_API_SSL_CERT_FILE", str(one_authority(LOCAL / "prefect")))
    _console.print(f"Prefect        {api_url.removesuffix('/api')}")
    return api_url
