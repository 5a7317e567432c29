"""What starts the parts in production names commands, settings and folders that exist."""

import json
import re
import shlex
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import prefect.settings
import pytest
import yaml
from prefect.cli._app import _app as prefect_cli

REPOSITORY = Path(__file__).parents[3]
DEPLOYMENTS = REPOSITORY / "deployments"
CONTAINERFILE = (DEPLOYMENTS / "Containerfile").read_text()
SERVICES: dict[str, Any] = yaml.safe_load((DEPLOYMENTS / "compose.yaml").read_text())["services"]
OF_OUR_IMAGE = {name: each for name, each in SERVICES.items() if each["image"] == "backoffice-sync"}
UNITS = sorted((DEPLOYMENTS / "systemd").glob("*.service"))
PLACE = "/opt/backoffice-sync"
HARDENING = {
    "User=backoffice-sync",
    "CapabilityBoundingSet=",
    "NoNewPrivileges=true",
    "ProtectHome=true",
    "ProtectSystem=strict",
}


def values(text: str, name: str) -> list[str]:
    """Return the values of a key of a unit, or the arguments of an instruction of an image."""
    return re.findall(rf"^{name}[= ](.*)$", text, re.MULTILINE)


def last(text: str, name: str) -> str:
    return values(text, name)[-1]


COMMANDS: dict[str, list[str]] = {
    "image": json.loads(last(CONTAINERFILE, "CMD")),
    **{name: shlex.split(service["command"]) for name, service in OF_OUR_IMAGE.items()},
    **{unit.name: shlex.split(last(unit.read_text(), "ExecStart")) for unit in UNITS},
}
VARIABLES = {
    **{name: list(service["environment"]) for name, service in OF_OUR_IMAGE.items()},
    **{
        unit.name: [each.partition("=")[0] for each in values(unit.read_text(), "Environment")]
        for unit in UNITS
    },
}
SETTINGS = set(
    re.findall(r"^(?:# )?([A-Z_]+)=", (REPOSITORY / ".env.example").read_text(), re.MULTILINE)
)


def test_there_are_all_parts() -> None:
    assert set(OF_OUR_IMAGE) == {"prefect", "deploy", "worker", "api"}
    assert [unit.stem for unit in UNITS] == [
        "backoffice-sync-api",
        "backoffice-sync-prefect",
        "backoffice-sync-worker@",
    ]


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
def test_each_command_exists(command: list[str]) -> None:
    program, *arguments = command
    if Path(program).name == "prefect":
        prefect_cli.parse_args(arguments, exit_on_error=False, print_error=False)
    else:
        option, module = arguments
        assert (Path(program).name, option) == ("python", "-m")
        spec = find_spec(module)
        assert spec is not None
        assert not spec.submodule_search_locations or find_spec(f"{module}.__main__")


@pytest.mark.parametrize("variables", VARIABLES.values(), ids=VARIABLES)
def test_each_variable_is_a_setting(variables: list[str]) -> None:
    for variable in variables:
        assert (
            variable in SETTINGS
            or hasattr(prefect.settings, variable)
            or variable.startswith(("PREFECT_LOGGING_", "PYTHON"))
        ), variable


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_a_unit_has_few_rights_and_one_place(unit: Path) -> None:
    text = unit.read_text()
    assert set(text.splitlines()) >= HARDENING
    assert last(text, "ExecStart").startswith(f"{PLACE}/.venv/bin/")


def test_the_image_is_not_root_and_has_the_place_of_the_units() -> None:
    assert int(last(CONTAINERFILE, "USER")) > 0
    assert values(CONTAINERFILE, "WORKDIR") == [PLACE, PLACE]


def test_no_registry_is_named() -> None:
    assert values(CONTAINERFILE, "FROM") == ["${BASE} AS build", "${BASE}"]
    images = [service["image"] for service in SERVICES.values()]
    assert not [image for image in [*images, last(CONTAINERFILE, "ARG BASE")] if "/" in image]


def test_the_image_gets_what_is_listed_and_no_settings() -> None:
    patterns = (REPOSITORY / ".dockerignore").read_text().splitlines()[1:]
    listed = [pattern[1:] for pattern in patterns if pattern.startswith("!")]
    assert patterns == ["*", *(f"!{name}" for name in listed), "**/.env", "**/__pycache__"]
    assert all((REPOSITORY / name).exists() for name in listed)
