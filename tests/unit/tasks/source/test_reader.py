"""What a reader does where it may not ask which kind a collection is of.

All else that it does needs a real MongoDB: see `tests/integration/test_sources.py`.
"""

from unittest.mock import MagicMock, Mock

import pytest
from pymongo.errors import OperationFailure

from tasks.entities import entity_type_named
from tasks.mongo import MongoRetry
from tasks.mongo_errors import MongoRefused
from tasks.source.reader import SourceReader

TENANT = entity_type_named("tenant")
FORBIDDEN, NOT_SUPPORTED = 13, 115


def reader_refused_with(code: int) -> SourceReader:
    database = MagicMock()
    database.list_collections.side_effect = OperationFailure("no", code, {"code": code})
    return SourceReader(database, MongoRetry(Mock(), seconds=0))


def test_a_collection_is_taken_for_an_ordinary_one() -> None:
    assert isinstance(reader_refused_with(FORBIDDEN).present(TENANT), dict)


def test_any_other_refusal_is_told() -> None:
    with pytest.raises(MongoRefused):
        reader_refused_with(NOT_SUPPORTED).present(TENANT)
