"""What `--help` says."""

import subprocess
import sys
from pathlib import Path

from scripts.local.hub import Fault

REPOSITORY = Path(__file__).parents[5]


def test_the_help_explains_every_field_and_every_door() -> None:
    command = [sys.executable, "-m", "scripts.local.hub", "--help"]
    text = subprocess.run(command, cwd=REPOSITORY, check=True, capture_output=True, text=True)
    words = " ".join(text.stdout.split())
    for name, field in Fault.model_fields.items():
        assert f"{name} {field.description}" in words
    for door in ("PUT /_hub/faults", "GET /_hub/requests", "GET /_hub/stats", "POST /_hub/reset"):
        assert door in words
    assert "curl -X PUT" in words
