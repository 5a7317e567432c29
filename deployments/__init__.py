"""How the flows are deployed, and their REST API; `scripts` begin by importing this, too."""

from pathlib import Path

from deployments.files import exit_unless_readable

exit_unless_readable(Path(".env"))
