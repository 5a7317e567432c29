"""Serves the REST API: `python -m deployments.api`."""

import sys

import uvicorn
from prefect.settings import get_current_settings

from deployments.api.app import create_app
from tasks.settings import SettingsError, read_api_settings, read_mongo_settings


def main() -> int:
    """Serve the API until Ctrl-C; 2 when a setting is wrong."""
    try:
        settings, mongo_settings = read_api_settings(), read_mongo_settings()
        _require_prefect_api()
    except SettingsError as error:
        print(error, file=sys.stderr)
        return 2
    uvicorn.run(create_app(settings, mongo_settings), host=settings.host, port=settings.port)
    return 0


def _require_prefect_api() -> None:
    if not get_current_settings().api.url:
        raise SettingsError({"PREFECT_API_URL": "is missing"})


if __name__ == "__main__":
    sys.exit(main())
