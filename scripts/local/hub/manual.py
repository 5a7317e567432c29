"""What `--help` says about a hub that runs: its doors for tests, and the fields of a fault."""

import inspect
from textwrap import fill, indent
from typing import Final

from scripts.local.hub.faults import Fault

_WIDTH: Final = 96
_NAME_WIDTH: Final = 22

_DOORS: Final = """\
while it runs:
  PUT /_hub/faults      replace the faults by a JSON list; each request gets the first that is
                        for it, and is answered as usual where none is; throttles start anew
  GET /_hub/requests    the newest upsert requests as the hub saw them
  GET /_hub/stats       counts of all requests, of those in flight and of the items stored
  POST /_hub/reset      forget all requests and items, and misbehave no longer

One endpoint breaks, and the others together take no more than 5 requests a second:

  curl -X PUT http://127.0.0.1:PORT/_hub/faults -d '[
    {"entity_type": "client", "status": 500},
    {"requests_per_second": 5, "status": 429, "retry_after": "1"}
  ]'
"""


def while_it_runs() -> str:
    """Return the part of the help after the options."""
    about = indent(inspect.getdoc(Fault) or "", "  ")
    fields = [_explained(name, field.description) for name, field in Fault.model_fields.items()]
    return "\n".join([_DOORS, "a fault:", about, "", *fields])


def _explained(name: str, description: str | None) -> str:
    return fill(
        description or "",
        width=_WIDTH,
        initial_indent=f"  {name:{_NAME_WIDTH}}",
        subsequent_indent=" " * (2 + _NAME_WIDTH),
        break_on_hyphens=False,
    )
