"""The Prefect server that the scripts start writes patiently on SQLite, and only there."""

import pytest

from scripts.local.prefect_on_sqlite import PatientSqliteConfiguration, patient_configuration


def test_on_sqlite() -> None:
    configuration = patient_configuration("sqlite+aiosqlite:////tmp/prefect.db")
    assert isinstance(configuration, PatientSqliteConfiguration)


@pytest.mark.parametrize("driver", ["asyncpg", "psycopg"])
def test_elsewhere_prefect_chooses(driver: str) -> None:
    assert patient_configuration(f"postgresql+{driver}://prefect@db:5432/prefect") is None
