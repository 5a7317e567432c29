"""Changes: what a sync would change of an item, field by field; no secret is shown."""

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

from tasks.entities import in_one_line
from tasks.trail.steps import FieldChange

_VALUE_LENGTH: Final = 200
_SECRET_NAME: Final = re.compile("password|secret|token|key", re.IGNORECASE)
_HIDDEN: Final = "(not shown)"


def changes_between(
    confirmed: Mapping[str, Any] | None, body: Mapping[str, Any]
) -> list[FieldChange]:
    """Return the fields in which a body differs from the one that Stage 1 has confirmed, by name.

    Values are JSON in one line, cut to `_VALUE_LENGTH`; None where a body lacks the field. Those
    of fields that look like secrets are not shown.
    """
    old, new = dict(_leaves(confirmed or {})), dict(_leaves(body))
    return [
        FieldChange(field=path, old=_shown(path, old), new=_shown(path, new))
        for path in sorted(old.keys() | new.keys())
        if path not in old or path not in new or old[path] != new[path]
    ]


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Yield each value that holds no others, as JSON, by its path."""
    parts: list[tuple[Any, Any]] = []
    if isinstance(value, dict):
        parts = list(value.items())
    elif isinstance(value, list):
        parts = list(enumerate(value))
    for name, part in parts:
        yield from _leaves(part, f"{path}.{name}" if path else str(name))
    if not parts and path:
        yield path, json.dumps(value, ensure_ascii=False)


def _shown(path: str, values: Mapping[str, str]) -> str | None:
    if path not in values:
        return None
    return _HIDDEN if _SECRET_NAME.search(path) else in_one_line(values[path], _VALUE_LENGTH)
