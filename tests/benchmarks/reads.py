"""Reads of a trail of a year, and their plans: python -m tests.benchmarks.reads."""

import argparse
import asyncio
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, Final

import httpx
from pymongo import MongoClient
from pymongo.database import Database
from rich.console import Console

from deployments.api.app import create_app
from scripts.local.mongod import local_mongod
from scripts.local.process import StartFailed
from tasks.settings import read_api_settings, read_mongo_settings
from tasks.trail.audit_trail import audit_trail
from tasks.trail.fields import RunId
from tasks.trail.step_cursor import StepCursor
from tests.benchmarks.parts import environment_without_settings
from tests.benchmarks.reads_plans import plans_of
from tests.benchmarks.reads_trail import TrailSize, fill
from tests.benchmarks.report import machine

Document = dict[str, Any]

_OUTPUT: Final = Path(__file__).parents[2] / ".local" / "benchmarks" / "reads.json"
_DATABASE: Final = "reads"
_MIB: Final = 2**20
_PATIENCE: Final = 600.0
_WIDTH_IN_A_FILE: Final = 200
_console: Final = Console(
    width=None if sys.stdout.isatty() else _WIDTH_IN_A_FILE, log_path=False, highlight=False
)


@dataclass(frozen=True)
class Read:
    """A read, and in how many milliseconds it is to be done."""

    name: str
    goal_ms: float | None
    do: Callable[[], object]
    is_command: bool = False


@dataclass(frozen=True)
class Figure:
    """How long a read took, in the median and at least, and the plans of MongoDB."""

    name: str
    goal_ms: float | None
    median_ms: float
    least_ms: float
    plans: list[str]
    peak_mib: float | None = None


def main() -> int:
    """Make the trail, print and write the figures."""
    arguments = _arguments()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    figures: list[Figure] = []
    try:
        with ExitStack() as stack:
            for figure in _measured(arguments, stack):
                figures.append(figure)
                _print(figure)
    except StartFailed as failure:
        _console.print(str(failure), style="red", markup=False)
        return 1
    report = {"machine": machine(), "figures": [asdict(figure) for figure in figures]}
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    arguments.json.write_text(json.dumps(report, indent=2) + "\n")
    return 0


def _measured(arguments: argparse.Namespace, stack: ExitStack) -> Iterator[Figure]:
    folder = arguments.data or Path(stack.enter_context(tempfile.TemporaryDirectory()))
    uri = stack.enter_context(local_mongod(folder / "mongodb"))
    client = stack.enter_context(MongoClient[Document](uri, tz_aware=True))
    _set_environment(uri)
    database = client[_DATABASE]
    run_id = _trail(database, TrailSize(arguments.runs, arguments.steps))
    runner = stack.enter_context(asyncio.Runner())
    for read in [
        *_reads_of_api(runner, database, run_id, arguments.runs),
        *_reads_of_sync(),
        *_reads_of_history(run_id),
    ]:
        yield _figure(database, read, arguments.rounds)


def _set_environment(uri: str) -> None:
    own = environment_without_settings()
    os.environ.clear()
    os.environ.update(own | {"MONGODB_URI": uri, "MONGODB_DB": _DATABASE})


def _trail(database: Database[Document], size: TrailSize) -> RunId:
    """Return the large run of a trail, which is made unless it is there."""
    if database.sync_runs.estimated_document_count() == 0:
        _console.log(f"Making {size.runs:,} runs, and one of {size.steps:,} steps")
        fill(database, size)
    database.drop_collection("sync_rollups")
    _console.log("Making the indexes")
    audit_trail(read_mongo_settings())
    newest = database.sync_runs.find_one(sort=[("started_at", -1)])
    assert newest is not None
    return RunId(newest["_id"])


def _reads_of_api(
    runner: asyncio.Runner, database: Database[Document], run_id: RunId, runs: int
) -> Iterator[Read]:
    app = create_app(read_api_settings(), read_mongo_settings())
    client = httpx.AsyncClient(
        transport=httpx.ASGITransport(app), base_url="http://localhost/api", timeout=_PATIENCE
    )

    def get(path: str, **parameters: Any) -> Callable[[], object]:
        return lambda: runner.run(_answer(client, path, parameters))

    yield Read("/api/metrics, the first time", None, get("/metrics"))
    yield Read("/api/metrics", 50, get("/metrics"))
    for page in (1, runs // 100, runs // 50):
        yield Read(f"/runs, page {page:,}", 50, get("/admin/sync/runs", page=page))
    yield Read("/runs/{id}", 20, get(f"/admin/sync/runs/{run_id}"))
    steps = partial(get, f"/admin/sync/runs/{run_id}/steps")
    for filters in _FILTERS:
        yield Read(f"steps {_in_words(filters)}", 100, steps(**filters))
    for name, step in _steps_within(database, run_id):
        for filters in _FILTERS:
            after = {"after": str(StepCursor.of(step)), **filters}
            yield Read(f"steps {_in_words(filters)}, after {name}", 100, steps(**after))
    yield Read("steps, limit=500", 100, steps(limit=500))
    last = database.sync_steps.count_documents({"run_id": run_id}) // 50
    yield Read(f"steps, page {last:,}", None, steps(page=last))


_FILTERS: Final[tuple[dict[str, Any], ...]] = (
    {},
    {"ok": True},
    {"ok": False},
    {"entity_type": "branding"},
    {"ok": True, "entity_type": "branding"},
    {"ok": False, "entity_type": "branding"},
)


def _in_words(filters: dict[str, Any]) -> str:
    return ", ".join(f"{name}={value}" for name, value in filters.items()) or "without a filter"


async def _answer(client: httpx.AsyncClient, path: str, parameters: Document) -> None:
    (await client.get(path, params=parameters)).raise_for_status()


def _steps_within(database: Database[Document], run_id: RunId) -> Iterator[tuple[str, Document]]:
    """Yield a step in the middle of a run, and one near its end."""
    of_run = {"run_id": run_id}
    steps = database.sync_steps.count_documents(of_run)
    for name, position in (("the middle", steps // 2), ("nearly all", steps - steps // 100)):
        found = database.sync_steps.find(of_run).sort({"created_at": 1, "_id": 1})
        yield name, next(found.skip(position).limit(1))


def _reads_of_sync() -> Iterator[Read]:
    ownership = audit_trail(read_mongo_settings()).ownership
    yield Read("unfinished runs, at the start of a sync and a sweep", None, ownership.unfinished)


def _reads_of_history(run_id: RunId) -> Iterator[Read]:
    for arguments, goal_ms in (
        ([], 500),
        (["--failed"], 500),
        ([str(run_id)], 500),
        ([str(run_id), "--failed", "--json"], None),
        ([str(run_id), "--failed"], None),
    ):
        command = [sys.executable, "-m", "tests.benchmarks.reads_history", *arguments]
        name = " ".join(["history", *arguments]).replace(str(run_id), "RUN")
        yield Read(name, goal_ms, partial(_peak_mib_of, command), is_command=True)


def _peak_mib_of(command: list[str]) -> float:
    """Run a command, and return its peak memory."""
    ended = subprocess.run(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=True
    )
    return int(ended.stderr.splitlines()[-1]) / _MIB


def _figure(database: Database[Document], read: Read, rounds: int) -> Figure:
    once = read.goal_ms is None and (read.is_command or "first" in read.name)
    taken, results = [], []
    for _ in range(1 if once else rounds):
        started = time.perf_counter()
        results.append(read.do())
        taken.append((time.perf_counter() - started) * 1_000)
    plans = [] if once else plans_of(database, read.do)
    peaks = [result for result in results if isinstance(result, float)]
    return Figure(
        read.name, read.goal_ms, median(taken), min(taken), plans, max(peaks, default=None)
    )


def _print(figure: Figure) -> None:
    goal = ""
    if figure.goal_ms is not None:
        is_met = figure.median_ms <= figure.goal_ms
        goal = f", goal {figure.goal_ms:g}: {'met' if is_met else 'MISSED'}"
    peak = "" if figure.peak_mib is None else f", {figure.peak_mib:.0f} MiB"
    _console.print(
        f"{figure.name}: {figure.median_ms:,.1f} ms (least {figure.least_ms:,.1f}){peak}{goal}",
        markup=False,
    )
    for plan in figure.plans:
        _console.print(f"    {plan}", markup=False)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.reads", description=__doc__)
    parser.add_argument("--runs", type=int, default=100_000, help="default: %(default)s")
    parser.add_argument(
        "--steps", type=int, default=1_000_000, help="of the large run; default: %(default)s"
    )
    parser.add_argument("--rounds", type=int, default=9, help="default: %(default)s")
    parser.add_argument(
        "--data", type=Path, help="folder that keeps the trail, and has it the next time"
    )
    parser.add_argument("--json", type=Path, default=_OUTPUT)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
