"""`prefect server start` on SQLite, where a write waits for the one before it.

A Prefect 3.9 server begins most writes as readers. SQLite then refuses one whose snapshot another
has overtaken, the server answers 503, and its client tries again two seconds later
(PrefectHQ/prefect issue 18934). Here each begins as the writer that it will be.
"""

import gc
import logging
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Final

from prefect.cli import app
from prefect.server.database.configurations import SQLITE_BEGIN_MODE, AioSqliteConfiguration
from prefect.server.database.dependencies import set_database_config
from prefect.server.utilities.database import get_dialect
from prefect.settings import get_current_settings
from sqlalchemy.ext.asyncio import AsyncSession, AsyncSessionTransaction

_NEW_OBJECTS: Final = 50_000
"""How many objects are made before Python looks for garbage in cycles.

With Python's own 700 that takes a twentieth of the server's time.
"""


class SqliteWriterConfiguration(AioSqliteConfiguration):
    """Begins every transaction with `BEGIN IMMEDIATE`."""

    @asynccontextmanager
    async def begin_transaction(
        self,
        session: AsyncSession,
        with_for_update: bool = True,  # noqa: ARG002 - the base class's parameter
    ) -> AsyncGenerator[AsyncSessionTransaction, None]:
        async with super().begin_transaction(session, with_for_update=True) as transaction:
            await session.connection()
            # It has begun. A read that the server nests in it would else wait for it to end.
            SQLITE_BEGIN_MODE.set("DEFERRED")
            yield transaction


def writer_configuration(connection_url: str) -> SqliteWriterConfiguration | None:
    """Return how to write to that database; None leaves it to Prefect: it is not SQLite."""
    if get_dialect(connection_url).name != "sqlite":
        return None
    return SqliteWriterConfiguration(connection_url)


def main() -> None:
    """Run the Prefect command line, as `python -m prefect` does."""
    connection_url = get_current_settings().server.database.connection_url
    assert connection_url is not None
    set_database_config(writer_configuration(connection_url.get_secret_value()))
    # It logs whole URLs, and that of the alerts' webhook is secret.
    logging.getLogger("httpx").setLevel(logging.WARNING)
    gc.set_threshold(_NEW_OBJECTS)
    app()


if __name__ == "__main__":
    main()
