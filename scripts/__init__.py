"""The commands of this repository."""

import deployments  # noqa: F401 - looks at `.env` before Prefect is imported
