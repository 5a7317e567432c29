"""Tells other commands of this machine which servers `./scripts/serve` has started."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final, Literal

from pydantic import TypeAdapter, ValidationError

from scripts.local.mongod import mongodb_answers
from scripts.local.process import answers

Server = Literal["MONGODB_URI", "PREFECT_API_URL"]
"""Setting that names a server."""
_servers: TypeAdapter[dict[Server, str]] = TypeAdapter(dict[Server, str])
_PATIENCE_SECONDS: Final = 5.0


@contextmanager
def announced(servers: Mapping[Server, str], path: Path) -> Iterator[None]:
    """Let a file that only this user may read name these servers until the block ends."""
    path.unlink(missing_ok=True)
    path.touch(mode=0o600)
    path.write_text(json.dumps(servers))
    try:
        yield
    finally:
        path.unlink(missing_ok=True)


def servers_to_adopt(path: Path, named: Mapping[Server, str]) -> dict[Server, str]:
    """Return which of the servers that a file names to use beside those that the settings name.

    None where a setting names another one, since a MongoDB and a Prefect server belong together,
    and none where one does not answer: the file is a stale one.
    """
    started = _read(path)
    if any(named.get(setting, address) != address for setting, address in started.items()):
        return {}
    unnamed = {setting: started[setting] for setting in started if setting not in named}
    return unnamed if _answer(unnamed) else {}


def _read(path: Path) -> dict[Server, str]:
    try:
        return _servers.validate_json(path.read_bytes())
    except (OSError, ValidationError):
        return {}


def _answer(servers: Mapping[Server, str]) -> bool:
    api_url, uri = servers.get("PREFECT_API_URL"), servers.get("MONGODB_URI")
    if api_url and not answers(f"{api_url}/health", within_seconds=_PATIENCE_SECONDS):
        return False
    return not uri or mongodb_answers(uri, within_seconds=_PATIENCE_SECONDS)
