"""The Prefect server that the scripts start writes patiently on SQLite, and only there."""

import pytest

from scripts.local.prefect_on_sqlite import SqliteWriterConfiguration, writer_configuration


def test_on_sqlite() -> None:
    configuration = writer_configuration("sqlite+aiosqlite:////tmp/prefect.db")
    assert isinstance(configuration, SqliteWriterConfiguration)


@pytest.mark.parametrize("driver", ["asyncpg", "psycopg"])
def test_elsewhere_prefect_chooses(driver: str) -> None:
    assert writer_configuration(f"postgresql+{driver}://prefect@db:5432/prefect") is None
