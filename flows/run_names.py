"""The names and tags that runs go by in Prefect."""

import re
from collections.abc import Mapping
from typing import Final, cast

from coolname.data import config

from flows.state_mirror import current_flow_run, database_tag, options_of
from tasks.entities import ENTITY_NAMES
from tasks.trail.runs import RunOptions, SyncMode

_TRIGGER_LENGTH: Final = 60
_LISTS: Final = cast(Mapping[str, Mapping[str, list[str]]], config)


def _words(kind: str) -> frozenset[str]:
    return frozenset(word for each in _LISTS[kind]["lists"] for word in _LISTS[each]["words"])


_ADJECTIVES: Final = _words("adj_any")
_ANIMALS: Final = _words("subj")
_FILLED_IN: Final = re.compile(
    r"""
    (?:alpha|beta|gamma|delta|epsilon|zeta|eta|theta|iota|kappa|lambda|mu
      |nu|xi|omicron|pi|rho|sigma|tau|upsilon|phi|chi|psi|omega)(?:\d{1,3}|\d{0,3}-[a-z-]+)
    |
    (?:Awesome|Ergonomic|Fantastic|Generic|Gorgeous|Handcrafted|Handmade|Incredible|Intelligent
      |Licensed|Practical|Refined|Rustic|Sleek|Small|Tasty|Unbranded)-\w{2,6}
    """,
    re.VERBOSE,
)
"""What the forms of Prefect's two interfaces fill in."""


def name_of_run(options: RunOptions) -> str:
    """Return the name of a run, such as `all entities - schedule`."""
    is_all = len(options.entities) == len(ENTITY_NAMES)
    what = "all entities" if is_all else ", ".join(options.entities)
    if options.mode is SyncMode.CHANGED:
        what = f"changed: {what}"
    if options.dry_run:
        what = f"dry run: {what}"
    return f"{what} - {options.trigger[:_TRIGGER_LENGTH]}"


def name_of_current_run() -> str:
    """Name the `admin-sync` flow run that is about to begin; a name that it was given stays."""
    flow_run = current_flow_run()
    return name_of_run(options_of(flow_run)) if is_generated(flow_run.name) else flow_run.name


def is_generated(name: str) -> bool:
    """Whether Prefect made a name up because nobody gave one.

    Its records do not tell, the words do. The server takes an adjective and an animal from the
    lists of coolname (`brave-otter`). The form of the dashboard fills in a Greek letter, a number
    and places (`epsilon596-tzenketh-warp`), any of which may be missing; a letter alone is more
    likely one that somebody gave. The form of its V2 interface takes one of 17 adjectives and an
    animal (`Sleek-Otter`).
    """
    adjective, _, animal = name.partition("-")
    is_of_server = adjective in _ADJECTIVES and animal in _ANIMALS
    return is_of_server or _FILLED_IN.fullmatch(name) is not None


def tags_of_run(options: RunOptions, database: str) -> list[str]:
    """Return the tags that the runs of a kind, or of a database, are found by in Prefect."""
    dry_run = ["dry-run"] if options.dry_run else []
    return [f"mode:{options.mode}", *dry_run, database_tag(database)]
