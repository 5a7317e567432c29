"""The contenders, and how one measured run of one of them goes."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Final

from tests.benchmarks.arena import Arena
from tests.benchmarks.effort import Effort
from tests.benchmarks.parts import cpu_seconds_of, cpu_seconds_of_machine
from tests.benchmarks.prefect_records import PrefectRecord, record_of
from tests.benchmarks.proofs import (
    Answer,
    BenchmarkFailed,
    all_items_are_in,
    every_item_has_a_step,
    nothing_was_sent,
    our_run_is_complete,
)

_NODE_SCRIPT: Final = Path(__file__).with_name("node_loop.mjs")
_NODE_DRIVER: Final = "mongodb@7.9.0"
_NPM_SECONDS: Final = 60
_QUIET_BEFORE_SECONDS: Final = 0.5
_QUIET_AFTER_SECONDS: Final = 2.0
"""Longer than the Prefect server waits before it writes the last task runs down."""
_START_SECONDS: Final = 120
_SLOWEST_ITEMS_PER_SECOND: Final = 10
_LOG_CHARACTERS_SHOWN: Final = 3_000


@dataclass(frozen=True)
class Run:
    """One contender's run: its pace, and what it took of each process."""

    contender: str
    workload: str
    items: int
    effort: Effort
    cpu_seconds_elsewhere: Mapping[str, float]
    max_in_flight: int
    prefect: PrefectRecord | None

    @property
    def items_per_second(self) -> float:
        return self.items / self.effort.seconds


@dataclass(frozen=True)
class Contender:
    """Something that sends a workload: a command that prints its effort as a line of JSON."""

    name: str
    command: Callable[[Arena], Sequence[str]]
    proof: Callable[[Arena, Answer], None] = all_items_are_in
    environment: Mapping[str, str] = field(default_factory=dict)

    def run(self, arena: Arena) -> Run:
        """Do the arena's whole workload in a fresh process.

        Raises:
            BenchmarkFailed: the process failed, or not everything is where it belongs.
        """
        arena.parts.settle(_QUIET_BEFORE_SECONDS)
        cpu_before = _cpu_seconds_elsewhere(arena)
        answer = self._answer(arena)
        arena.parts.settle(_QUIET_AFTER_SECONDS)
        cpu_after = _cpu_seconds_elsewhere(arena)
        self.proof(arena, answer)
        return Run(
            contender=self.name,
            workload=arena.workload.name,
            items=arena.workload.items,
            effort=Effort(**{part.name: answer[part.name] for part in fields(Effort)}),
            cpu_seconds_elsewhere={name: cpu_after[name] - cpu_before[name] for name in cpu_after},
            max_in_flight=arena.hub.stats().max_in_flight,
            prefect=_prefect_record(arena, answer),
        )

    def _answer(self, arena: Arena) -> Answer:
        log_path = arena.parts.scratch / "contender.log"
        with log_path.open("w") as log:
            process = subprocess.run(
                self.command(arena),
                env={**arena.environment, **self.environment},
                cwd=arena.parts.scratch,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                timeout=_START_SECONDS + arena.workload.items / _SLOWEST_ITEMS_PER_SECOND,
                check=False,
            )
        if process.returncode != 0:
            end_of_log = log_path.read_text()[-_LOG_CHARACTERS_SHOWN:]
            raise BenchmarkFailed(f"{self.name} ended with {process.returncode}\n{end_of_log}")
        answer: Answer = json.loads(process.stdout.splitlines()[-1])
        return answer


def ours(**parameters: Any) -> Contender:
    """Return the flow, started with these parameters."""
    return Contender(
        "ours",
        lambda arena: [
            *_python("our_sync"),
            json.dumps({"entities": list(arena.workload.sizes), **parameters}),
        ],
        our_run_is_complete,
    )


OURS: Final = ours()
BARE_LOOP: Final = Contender(
    "bare loop", lambda arena: [*_python("bare_loop"), str(arena.write_requests())]
)
NAIVE_MAPPING: Final = Contender(
    "naive mapping", lambda _: _python("naive_mapping"), every_item_has_a_step("naive_steps")
)
NAIVE_WITH_ONE_CLIENT: Final = Contender(
    "naive, one client",
    lambda _: [*_python("naive_mapping"), "--one-client"],
    every_item_has_a_step("naive_steps"),
)
OURS_UNCHANGED: Final = Contender(
    "ours, nothing changed", ours(mode="changed").command, nothing_was_sent
)


def node_loop(driver_folder: Path) -> Contender | None:
    """Return the Node loop; None without Node, and without audit where npm can't get the driver."""
    node = shutil.which("node")
    if node is None:
        return None

    def command(arena: Arena) -> list[str]:
        return [node, str(_NODE_SCRIPT), str(arena.write_requests())]

    if not _has_node_driver(driver_folder):
        return Contender("Node loop without audit", command)
    return Contender(
        "Node loop",
        command,
        every_item_has_a_step("node_steps"),
        {"NODE_DRIVER": str(driver_folder)},
    )


def _python(contender: str) -> list[str]:
    return [sys.executable, "-m", f"tests.benchmarks.{contender}"]


def _has_node_driver(folder: Path) -> bool:
    """Whether the MongoDB driver for Node is in the folder, where npm puts it at the first call."""
    npm = shutil.which("npm")
    if npm is not None and not (folder / "node_modules" / "mongodb").is_dir():
        folder.mkdir(parents=True, exist_ok=True)
        install = [npm, "install", "--prefix", str(folder), "--ignore-scripts", "--no-audit"]
        try:
            subprocess.run(
                [*install, _NODE_DRIVER], capture_output=True, timeout=_NPM_SECONDS, check=False
            )
        except subprocess.TimeoutExpired:
            return False
    return (folder / "node_modules" / "mongodb").is_dir()


def _cpu_seconds_elsewhere(arena: Arena) -> dict[str, float]:
    servers = {
        "Prefect server": arena.parts.prefect.cpu_seconds(),
        "mongod": arena.parts.mongodb.cpu_seconds(),
        "hub": cpu_seconds_of(arena.hub.pid),
    }
    known = sum(servers.values()) + sum(os.times()[:4])
    return {**servers, "other programs": cpu_seconds_of_machine() - known}


def _prefect_record(arena: Arena, answer: Answer) -> PrefectRecord | None:
    if "flow_run_id" not in answer:
        return None
    return record_of(
        arena.parts.prefect.address, answer["flow_run_id"], client_retries=answer["client_retries"]
    )
