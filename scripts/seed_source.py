"""Puts the seed's five source documents into MongoDB; a second run changes nothing."""

import argparse
import sys
from datetime import UTC, datetime
from typing import Any, Final

from tasks.entities import ENTITY_TYPES
from tasks.mongo import database
from tasks.mongo_errors import MongoError, mongo_errors
from tasks.settings import MongoSettings, SettingsError, read_mongo_settings

SEED_DOCUMENTS: Final[dict[str, dict[str, Any]]] = {
    "tenant": {
        "id": "regnum-christi",
        "name": "Regnum Christi",
        "password_check_url": "https://auth.regnumchristi.org/check",
        "enabled": True,
    },
    "client": {
        "id": "semperaltius",
        "name": "Semper Altius",
        "redirect_uris": ["https://pagos.semperaltius.edu.mx/callback"],
        "pkce_required": True,
        "enabled": True,
    },
    "subtenant": {
        "id": "rcsa",
        "tenant_id": "regnum-christi",
        "name": "RCSA",
        "enabled": True,
    },
    "domain": {
        "host": "pagos.semperaltius.edu.mx",
        "tenant_id": "regnum-christi",
        "default_subtenant_id": "rcsa",
        "client_id": "semperaltius",
        "enabled": True,
    },
    "branding": {
        "id": "branding_rcsa_001",
        "scope": "subtenant",
        "tenant_id": "regnum-christi",
        "subtenant_id": "rcsa",
        "enabled": True,
    },
}
"""The seed document's examples, by entity type; each is inserted at version 1."""


def seed_source(settings: MongoSettings) -> int:
    """Insert the seed documents that are not there yet and return how many that were.

    A document that is there stays as it is, whatever its version.

    Raises:
        MongoError: MongoDB is away, or does not let us.
    """
    bookkeeping = {"version": 1, "updated_at": datetime.now(UTC)}
    inserted = 0
    for entity_type in ENTITY_TYPES:
        document = SEED_DOCUMENTS[entity_type.name]
        key = {entity_type.natural_key: document[entity_type.natural_key]}
        with mongo_errors():
            result = database(settings)[entity_type.collection].update_one(
                key, {"$setOnInsert": {**document, **bookkeeping}}, upsert=True
            )
        inserted += int(result.upserted_id is not None)
    return inserted


def main() -> int:
    """Seed the database that the settings name; 1 if MongoDB doesn't let us, 2 if one is wrong."""
    argparse.ArgumentParser(prog="python -m scripts.seed_source", description=__doc__).parse_args()
    try:
        inserted = seed_source(read_mongo_settings())
    except (SettingsError, MongoError) as error:
        print(error, file=sys.stderr)
        return 2 if isinstance(error, SettingsError) else 1
    print(f"{inserted} source documents inserted, {len(SEED_DOCUMENTS) - inserted} already there")
    return 0


if __name__ == "__main__":
    sys.exit(main())
