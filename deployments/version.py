"""The version of this project; pyproject.toml says it, and nothing else does."""

import tomllib
from pathlib import Path
from typing import Final

_PYPROJECT: Final = Path(__file__).parents[1] / "pyproject.toml"

VERSION: Final[str] = tomllib.loads(_PYPROJECT.read_text(encoding="utf-8"))["project"]["version"]

if __name__ == "__main__":
    print(VERSION)
