"""Looks at files before Prefect does, which reads them while it is imported."""

import os
import sys
from pathlib import Path
from typing import Final, NoReturn

_CERTIFICATES: Final = "SSL_CERT_FILE"


def exit_unless_readable(dot_env: Path) -> None:
    """End the process with one sentence and status 2 where a file can't be read.

    Args:
        dot_env: the file of settings; it may be missing.
    """
    try:
        if dot_env.is_file():
            dot_env.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        _exit(f"{dot_env.resolve()} can't be read: it is not UTF-8 text.")
    except OSError as error:
        _exit(f"{dot_env.resolve()} can't be read: {error.strerror}.")
    if path := os.environ.get(_CERTIFICATES):
        try:
            Path(path).open("rb").close()
        except OSError as error:
            _exit(f"{_CERTIFICATES} names a file that can't be read: {error.strerror}.")


def _exit(message: str) -> NoReturn:
    print(message, file=sys.stderr)
    sys.exit(2)
