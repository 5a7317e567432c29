"""Serves the REST API."""

import argparse
import sys

import uvicorn

from deployments.api.app import create_app
from deployments.loopback import exempt_loopback_from_proxies
from tasks.prefect_api import require_prefect_api
from tasks.settings import SettingsError, read_api_settings, read_mongo_settings


def main() -> int:
    """Serve the API until Ctrl-C; 2 when a setting is wrong."""
    argparse.ArgumentParser(prog="python -m deployments.api", description=__doc__).parse_args()
    exempt_loopback_from_proxies()
    try:
        settings, mongo_settings = read_api_settings(), read_mongo_settings()
        require_prefect_api()
    except SettingsError as error:
        print(error, file=sys.stderr)
        return 2
    uvicorn.run(create_app(settings, mongo_settings), host=settings.host, port=settings.port)
    return 0


if __name__ == "__main__":
    sys.exit(main())
