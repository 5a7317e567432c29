"""The contenders, and a measured run of one of them."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Final

from tests.benchmarks.checks import (
    BenchmarkFailed,
    Output,
    all_items_are_in,
    every_item_has_a_step,
    nothing_was_sent,
    our_run_is_complete,
)
from tests.benchmarks.parts import cpu_seconds_of, cpu_seconds_of_machine
from tests.benchmarks.prefect_records import PrefectRecord, record_of
from tests.benchmarks.resource_usage import ResourceUsage
from tests.benchmarks.testbed import Testbed

_NODE_SCRIPT: Final = Path(__file__).with_name("node_loop.mjs")
_NODE_DRIVER: Final = "mongodb@7.9.0"
_NPM_SECONDS: Final = 60
_IDLE_BEFORE_SECONDS: Final = 0.5
_IDLE_AFTER_SECONDS: Final = 2.0
"""Longer than the Prefect server waits before it stores the last task runs."""
_START_SECONDS: Final = 120
_SLOWEST_ITEMS_PER_SECOND: Final = 10
_LOG_CHARACTERS_SHOWN: Final = 3_000


@dataclass(frozen=True)
class Run:
    """One contender's run: its speed, and the resources that it and the servers used."""

    contender: str
    workload: str
    items: int
    usage: ResourceUsage
    cpu_seconds_elsewhere: Mapping[str, float]
    max_in_flight: int
    prefect: PrefectRecord | None

    @property
    def items_per_second(self) -> float:
        return self.items / self.usage.seconds


@dataclass(frozen=True)
class Contender:
    """A command that sends a workload and prints its resource usage as a line of JSON."""

    name: str
    command: Callable[[Testbed], Sequence[str]]
    check: Callable[[Testbed, Output], None] = all_items_are_in
    environment: Mapping[str, str] = field(default_factory=dict)

    def run(self, testbed: Testbed) -> Run:
        """Send the testbed's whole workload in a fresh process.

        Raises:
            BenchmarkFailed: the process failed, or the check did.
        """
        testbed.parts.wait_until_idle(_IDLE_BEFORE_SECONDS)
        cpu_before = _cpu_seconds_elsewhere(testbed)
        output = self._output(testbed)
        testbed.parts.wait_until_idle(_IDLE_AFTER_SECONDS)
        cpu_after = _cpu_seconds_elsewhere(testbed)
        self.check(testbed, output)
        return Run(
            contender=self.name,
            workload=testbed.workload.name,
            items=testbed.workload.items,
            usage=ResourceUsage(**{part.name: output[part.name] for part in fields(ResourceUsage)}),
            cpu_seconds_elsewhere={name: cpu_after[name] - cpu_before[name] for name in cpu_after},
            max_in_flight=testbed.hub.stats().max_in_flight,
            prefect=_prefect_record(testbed, output),
        )

    def _output(self, testbed: Testbed) -> Output:
        log_path = testbed.parts.scratch / "contender.log"
        with log_path.open("w") as log:
            process = subprocess.run(
                self.command(testbed),
                env={**testbed.environment, **self.environment},
                cwd=testbed.parts.scratch,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                timeout=_START_SECONDS + testbed.workload.items / _SLOWEST_ITEMS_PER_SECOND,
                check=False,
            )
        if process.returncode != 0:
            end_of_log = log_path.read_text()[-_LOG_CHARACTERS_SHOWN:]
            raise BenchmarkFailed(f"{self.name} ended with {process.returncode}\n{end_of_log}")
        output: Output = json.loads(process.stdout.splitlines()[-1])
        return output


def ours(**parameters: Any) -> Contender:
    """Return the flow, started with these parameters."""
    return Contender(
        "ours",
        lambda testbed: [
            *_python("our_sync"),
            json.dumps({"entities": list(testbed.workload.sizes), **parameters}),
        ],
        our_run_is_complete,
    )


OURS: Final = ours()
BARE_LOOP: Final = Contender(
    "bare loop", lambda testbed: [*_python("bare_loop"), str(testbed.write_requests())]
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

    def command(testbed: Testbed) -> list[str]:
        return [node, str(_NODE_SCRIPT), str(testbed.write_requests())]

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


def _cpu_seconds_elsewhere(testbed: Testbed) -> dict[str, float]:
    servers = {
        "Prefect server": testbed.parts.prefect.cpu_seconds(),
        "mongod": testbed.parts.mongodb.cpu_seconds(),
        "hub": cpu_seconds_of(testbed.hub.pid),
    }
    known = sum(servers.values()) + sum(os.times()[:4])
    return {**servers, "other programs": cpu_seconds_of_machine() - known}


def _prefect_record(testbed: Testbed, output: Output) -> PrefectRecord | None:
    if "flow_run_id" not in output:
        return None
    return record_of(
        testbed.parts.prefect.address,
        output["flow_run_id"],
        client_retries=output["client_retries"],
    )
