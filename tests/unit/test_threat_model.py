"""Each claim of the threat model has tests, and they exist."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
CLAIMS = [
    line.strip("|").split("|")
    for line in (REPOSITORY / ".github" / "SECURITY.md").read_text().splitlines()
    if line.startswith("|")
][2:]


@cache
def functions_in(path: str) -> set[str]:
    tree = ast.parse((REPOSITORY / path).read_text())
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


def test_there_are_claims() -> None:
    assert len(CLAIMS) > 20


@pytest.mark.parametrize(("claim", "tests"), [(claim, tests) for _, claim, tests in CLAIMS])
def test_a_claim_has_tests_that_exist(claim: str, tests: str) -> None:
    named = re.findall(r"`(tests/\S+\.py)::(test_\w+)`", tests)
    assert len(named) == tests.count("::") > 0, claim
    for path, name in named:
        assert name in functions_in(path)
