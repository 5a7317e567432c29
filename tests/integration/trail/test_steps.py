"""Steps as MongoDB holds them: written and read back the same, and found by `_id`s of any type."""

from datetime import UTC, datetime
from typing import Any

import pytest
from bson import Decimal128, Int64, MaxKey, MinKey, ObjectId, Timestamp
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from pymongo.database import Database

from tasks.errors import ErrorClass, ItemError
from tasks.mongo import MongoRetry, identity
from tasks.trail.fields import RunId
from tasks.trail.steps import FieldChange, Step, StepRecord, Steps, StepState, upsert_of
from tests.trail_documents import PERMANENT, TRANSIENT, at, new_step

Document = dict[str, Any]

texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))
int64s = st.integers(-(2**63), 2**63 - 1)
source_ids = (
    st.none()
    | st.booleans()
    | int64s
    | st.floats()
    | texts
    | st.binary()
    | st.builds(ObjectId)
    | st.integers(-(10**11), 10**11).map(lambda ms: at(ms / 1000))
    | st.dictionaries(st.sampled_from(["a", "b", "a.b"]), st.integers(0, 3), max_size=2)
    | st.sampled_from([MinKey(), MaxKey(), Decimal128("1.50"), Timestamp(7, 1)])
)
errors = st.none() | st.builds(
    ItemError, code=texts, message=texts, error_class=st.sampled_from(ErrorClass)
)
steps_of_items = st.builds(
    Step,
    error=errors,
    attempts=st.integers(0, 50),
    run_attempt=st.integers(1, 50),
    run_id=st.builds(ObjectId),
    entity_type=st.sampled_from(["tenant", "domain"]),
    natural_key=st.none() | texts,
    source_id=source_ids,
    version=st.none() | int64s | texts,
    request_id=st.none() | texts,
    http_status=st.none() | st.integers(100, 599),
    sync_id=st.none() | texts,
    duration_ms=st.none() | st.floats(0, 1e9),
    changes=st.none()
    | st.lists(st.builds(FieldChange, field=texts, old=st.none() | texts, new=texts), max_size=2),
    flow_run_id=texts,
    task_run_id=st.none() | texts,
)


@pytest.fixture
def steps(database: Database[Document], retry: MongoRetry) -> Steps:
    return Steps(database.sync_steps, retry)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@example(new_step(ObjectId(), {"$in": [1]}))
@given(steps_of_items)
def test_a_step_is_read_as_it_was_written(database: Database[Document], step: Step) -> None:
    database.sync_steps.bulk_write([upsert_of(step)])
    document = database.sync_steps.find_one({"run_id": step.run_id})
    assert document is not None
    record = StepRecord.model_validate(document)
    assert identity(record.source_id) == identity(step.source_id)
    written = step.model_dump(exclude={"source_id"})
    assert record.model_dump(include=set(written)) == written
    assert record.created_at == record.updated_at <= datetime.now(UTC)
    assert document["ok"] is (step.error is None)


def test_the_fields_of_a_document_of_sync_steps(database: Database[Document]) -> None:
    run_id = ObjectId()
    step = new_step(run_id, 7, error=PERMANENT, attempts=2, request_id="r", http_status=404)
    database.sync_steps.bulk_write([upsert_of(step)])
    (document,) = database.sync_steps.find()
    assert {
        name: value
        for name, value in document.items()
        if name not in ("_id", "created_at", "updated_at")
    } == {
        "run_id": run_id,
        "entity_type": "tenant",
        "source_id": 7,
        "natural_key": "7",
        "version": 1,
        "request_id": "r",
        "ok": False,
        "error": {
            "code": "NOT_FOUND",
            "message": "there is no such tenant",
            "class": "permanent",
        },
        "state": "Failed",
        "attempts": 2,
        "http_status": 404,
        "sync_id": None,
        "duration_ms": None,
        "flow_run_id": "a flow run",
        "run_attempt": 1,
        "task_run_id": None,
        "changes": None,
    }


def test_a_step_that_is_written_again_is_updated(database: Database[Document]) -> None:
    run_id = ObjectId()
    database.sync_steps.bulk_write([upsert_of(new_step(run_id, error=TRANSIENT))])
    (first,) = database.sync_steps.find()
    database.sync_steps.update_one({}, {"$set": {"created_at": at(0)}})
    for attempt in (1, 2):
        database.sync_steps.bulk_write([upsert_of(new_step(run_id, run_attempt=attempt))])
    (second,) = database.sync_steps.find()
    assert (second["_id"], second["created_at"]) == (first["_id"], at(0))
    assert second["updated_at"] > at(0)
    assert (second["ok"], second["state"], second["error"]) == (True, StepState.COMPLETED, None)
    assert second["run_attempt"] == 2


IDS = [
    None,
    -1.5,
    3,
    Int64(4),
    "a",
    {"a": 1},
    b"x",
    ObjectId("507f1f77bcf86cd799439011"),
    False,
    at(0),
    MinKey(),
    MaxKey(),
]


@pytest.mark.parametrize("asked", [IDS, IDS[:3], [IDS[5]], ["not there"], list[Any]()])
def test_prior_steps_are_those_of_the_documents(
    database: Database[Document], steps: Steps, asked: list[Any]
) -> None:
    run_id = ObjectId()
    database.sync_steps.bulk_write(
        [
            upsert_of(new_step(of, source_id, entity_type=entity_type))
            for source_id in IDS
            for of, entity_type in [(run_id, "domain"), (run_id, "tenant"), (ObjectId(), "domain")]
        ]
    )
    prior = steps.prior(run_id, "domain", asked)
    assert set(prior) == {identity(source_id) for source_id in asked if source_id != "not there"}


def test_a_prior_step_says_how_far_the_item_has_come(
    database: Database[Document], steps: Steps, run_id: RunId
) -> None:
    step = new_step(run_id, error=TRANSIENT, attempts=3, run_attempt=2)
    database.sync_steps.bulk_write([upsert_of(step)])
    (prior,) = steps.prior(run_id, "tenant", [1]).values()
    assert (prior.error, prior.attempts, prior.run_attempt) == (TRANSIENT, 3, 2)
