"""The emulator of AWS Lambda that Stage 1 is developed with, and the functions of Stage 1."""

import json
import socket
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from scripts.local.process import LOCALHOST, free_port, running
from tasks.entities import ENTITY_TYPES, EntityType, entity_type_named
from tests.integration.world import PATIENCE_SECONDS, Hub

CARGO_LAMBDA = Path(sysconfig.get_path("scripts"), "cargo-lambda")
FUNCTION = Path(__file__).with_name("lambda_function.py")


@dataclass(frozen=True)
class Emulator:
    """`cargo lambda watch`, and the hub that its functions ask."""

    port: int
    hub: Hub
    folder: Path

    @contextmanager
    def function(
        self, entity_name: str, *, replies_in_base64: bool = False
    ) -> Iterator[subprocess.Popen[bytes]]:
        """Run the function of an entity type as a process of its own."""
        name = function_name(entity_type_named(entity_name))
        environment = {
            "AWS_LAMBDA_FUNCTION_NAME": name,
            "AWS_LAMBDA_RUNTIME_API": f"{LOCALHOST}:{self.port}/.rt/{name}",
            "HUB": f"{LOCALHOST}:{self.hub.port}",
            "REPLIES_IN_BASE64": "yes" if replies_in_base64 else "",
        }
        with running(
            [sys.executable, "-IS", str(FUNCTION)],
            name=name,
            ready=lambda: True,  # the emulator keeps the requests that come before
            env=environment,
            log_path=self.folder / f"{name}.log",
        ) as process:
            yield process


@contextmanager
def running_emulator(hub: Hub, folder: Path) -> Iterator[Emulator]:
    """Run `cargo lambda watch` on a free port of 127.0.0.1, without any function."""
    port = free_port()
    arguments = ["--only-lambda-apis", "--invoke-address", LOCALHOST, "--invoke-port", str(port)]
    with running(
        [str(CARGO_LAMBDA), "lambda", "watch", *arguments],
        name="cargo lambda watch",
        ready=lambda: _listens(port),
        # The settings of its user are not for it, nor is a Rust toolchain.
        env={"CARGO": str(_cargo_in(folder)), "HOME": str(folder)},
        log_path=folder / "cargo-lambda.log",
        timeout_seconds=PATIENCE_SECONDS,
        cwd=folder,
    ):
        yield Emulator(port, hub, folder)


def function_name(entity_type: EntityType) -> str:
    return f"{entity_type.endpoint}-upsert"


def _cargo_in(folder: Path) -> Path:
    """Make a `cargo` that knows nothing but `metadata`: the functions of a Rust project."""
    target = {"kind": ["bin"], "src_path": ""}
    package = {
        "id": "stage1",
        "name": "stage1",
        "version": "0.0.0",
        "dependencies": [],
        "features": {},
        "manifest_path": "",
        "targets": [{**target, "name": function_name(each)} for each in ENTITY_TYPES],
    }
    metadata = {
        "version": 1,
        "packages": [package],
        "workspace_members": ["stage1"],
        "workspace_root": "",
        "target_directory": "",
    }
    cargo = folder / "cargo"
    cargo.write_text(f"#!/bin/sh\necho '{json.dumps(metadata)}'\n")
    cargo.chmod(0o755)
    return cargo


def _listens(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex((LOCALHOST, port)) == 0
