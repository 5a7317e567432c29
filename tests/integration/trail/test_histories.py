"""Whatever happens to documents: Stage 1 holds them as they are, or they don't count as in."""

import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from pymongo import MongoClient

from tasks.mongo import CODEC, MongoRetry
from tasks.settings import Settings, read_settings
from tasks.trail.items import ITEM_INDEXES
from tasks.trail.ownership import TURN_INDEX
from tasks.trail.runs import RUN_INDEXES
from tasks.trail.steps import STEP_INDEXES
from tests.integration.trail.backoffice import (
    DIES_AFTER,
    DIES_BEFORE,
    LOST,
    REFUSED,
    STORED_AND_LOST,
    BackOffice,
    Synced,
)

Document = dict[str, Any]
LONG_AGO = datetime(2020, 1, 1, tzinfo=UTC)
BOOKKEEPING = {"_id", "version", "updated_at", "updatedAt", "deleted_at", "deleted"}


@dataclass(frozen=True)
class Edit:
    """A document that is inserted, or replaces the newest or the oldest of its key."""

    key: str
    name: str | None
    version: Document
    deletion: Document
    place: str

    def __call__(self, office: BackOffice) -> None:
        content = {} if self.name is None else {"name": self.name}
        document = {"id": self.key, **content, **self.version, **self.deletion}
        found = list(office.tenants.find({"id": self.key}).sort("_id"))
        if self.place == "insert" or not found:
            office.tenants.insert_one(document)
        else:
            replaced = found[-1 if self.place == "newest" else 0]
            office.tenants.replace_one({"_id": replaced["_id"]}, document)


@dataclass(frozen=True)
class Removal:
    """The documents of a key are deleted."""

    key: str

    def __call__(self, office: BackOffice) -> None:
        office.tenants.delete_many({"id": self.key})


@dataclass(frozen=True)
class Renaming:
    """A document gets another key."""

    key: str
    new_key: str

    def __call__(self, office: BackOffice) -> None:
        office.tenants.update_one({"id": self.key}, {"$set": {"id": self.new_key}})


@dataclass(frozen=True)
class Sync:
    """A sync, with what goes wrong at its requests, and what is edited while it runs."""

    mode: str
    disable_gone: bool
    faults: tuple[str | None, ...]
    meanwhile: tuple[tuple[int, Edit], ...]

    def __call__(self, office: BackOffice) -> None:
        def happening(edit: Edit) -> Callable[[], None]:
            return lambda: edit(office)

        synced = office.sync(
            self.mode,
            disable_gone=self.disable_gone,
            faults=self.faults,
            at_requests={number: happening(edit) for number, edit in self.meanwhile},
        )
        if synced is not None and not self.meanwhile:
            check(office, synced)


# Few values: what goes wrong goes wrong when something comes back.
keys = st.sampled_from(["a", "a", "a", "b"])
names = st.sampled_from(["A", "B", "A", "B", "A", "B", None])
numbers = st.integers(1, 3)
version_styles = st.sampled_from(
    [
        st.just({}),
        st.just({}),
        numbers.map(lambda version: {"version": version}),
        numbers.map(lambda version: {"version": version}),
        numbers.map(lambda day: {"updatedAt": LONG_AGO + timedelta(days=day)}),
        numbers.map(lambda day: {"updated_at": 1_577_836_800_000 + day}),
        st.one_of(st.just({}), numbers.map(lambda version: {"version": version})),
    ]
)
deletions = st.sampled_from([{}, {}, {}, {}, {"deleted": True}, {"deleted_at": LONG_AGO}])
places = st.sampled_from(["newest", "newest", "newest", "newest", "oldest", "insert"])
faults = st.one_of(
    st.just(()),
    st.lists(
        st.sampled_from([None, REFUSED, LOST, STORED_AND_LOST, DIES_BEFORE, DIES_AFTER]),
        min_size=1,
        max_size=3,
    ).map(tuple),
)


@st.composite
def histories(draw: st.DrawFn) -> list[Callable[[BackOffice], None]]:
    """Rounds of edits and a sync; all documents of a history tell their versions alike."""
    edits = st.builds(Edit, keys, names, draw(version_styles), deletions, places)
    others = st.one_of(st.builds(Removal, keys), st.builds(Renaming, keys, keys))
    meanwhile = st.one_of(
        st.just(()), st.just(()), st.just(()), st.tuples(st.tuples(st.integers(0, 2), edits))
    )
    modes, booleans = st.sampled_from(["full", "changed"]), st.booleans()
    syncs = st.builds(Sync, modes, booleans, faults, meanwhile)
    changes = st.lists(st.one_of(edits, edits, edits, edits, others), max_size=2)
    rounds = draw(st.lists(st.tuples(changes, syncs), min_size=2, max_size=6))
    return [happening for edited, sync in rounds for happening in (*edited, sync)]


@pytest.fixture(scope="module")
def sync_settings(mongodb_uri: str) -> Iterator[Settings]:
    with pytest.MonkeyPatch.context() as patch:
        for name in ("TENANTS", "CLIENTS", "SUBTENANTS", "DOMAINS", "BRANDING"):
            patch.setenv(f"ADMIN_{name}_UPSERT_URL", "http://127.0.0.1:9/upsert")
        patch.setenv("ADMIN_SYNC_TOKEN", "a-token")
        patch.setenv("MONGODB_URI", mongodb_uri)
        patch.setenv("ADMIN_RETRY_MAX", "1")
        patch.setenv("ADMIN_TASK_RUNNER", "dask")  # threads stay on one core for good
        yield read_settings()


@pytest.fixture(scope="module")
def new_office(
    client: MongoClient[Document], sync_settings: Settings
) -> Iterator[Callable[[], BackOffice]]:
    database = client.get_database(f"histories_{uuid.uuid4().hex[:12]}", codec_options=CODEC)
    database.sync_runs.create_indexes([*RUN_INDEXES, TURN_INDEX])
    database.sync_steps.create_indexes(STEP_INDEXES)
    database.sync_items.create_indexes(ITEM_INDEXES)

    def empty() -> BackOffice:
        for name in ("source_tenants", "sync_runs", "sync_steps", "sync_items"):
            database[name].delete_many({})
        return BackOffice(database, MongoRetry(client, seconds=1), sync_settings)

    yield empty
    client.drop_database(database.name)


def version(number: int) -> Document:
    return {"version": number}


def edit(name: str, said: Document, place: str = "newest", **deletion: Any) -> Edit:
    return Edit("a", name, said, deletion, place)


def sync(mode: str = "full", *faults: str, meanwhile: Edit | None = None) -> Sync:
    return Sync(mode, False, faults, ((0, meanwhile),) if meanwhile else ())


CONTENT_THAT_COMES_BACK = [edit("A", {}), sync(), edit("B", {}), sync(), edit("A", {}), sync()]
VERSION_THAT_IS_NOT_RAISED = [
    *(edit("A", version(1)), sync(), edit("B", version(1)), sync("changed"), sync("changed")),
]
VERSION_THAT_GOES_BACK = [
    *(edit("A", version(1)), sync(), edit("B", version(2)), sync()),
    *(edit("A", version(1)), sync("changed")),
]
LOST_BY_A_CRASH_THEN_TAKEN_BACK = [
    *(edit("A", version(1)), sync(), edit("B", version(2)), sync("full", DIES_AFTER)),
    *(edit("A", version(1)), sync("changed")),
]
LOST_WITHOUT_VERSION_THEN_TAKEN_BACK = [
    *(edit("A", {}), sync(), edit("B", {}), sync("full", STORED_AND_LOST, STORED_AND_LOST)),
    *(edit("A", {}), sync("changed")),
]
OTHER_CONTENT_UNDER_AN_ID_IN_DOUBT = [
    *(edit("A", version(1)), sync("full", DIES_BEFORE)),
    *(edit("A", version(1), deleted=True), sync("full", meanwhile=edit("A", {}))),
]
DOUBT_THAT_ANOTHER_VERSION_ENDED = [
    *(edit("A", version(2)), sync(), edit("A", version(1)), sync("full", LOST, STORED_AND_LOST)),
    *(edit("B", version(3)), sync(), edit("A", version(1)), sync("changed")),
]
STALE_TWIN_WHILE_THE_RUN_GOES_ON = [
    *(Edit("b", "B", version(1), {}, "insert"), edit("B", version(2))),
    *(sync("full", meanwhile=edit("A", version(1), "insert")), sync("changed")),
]


@settings(suppress_health_check=list(HealthCheck))
@given(history=histories())
@example(history=CONTENT_THAT_COMES_BACK)
@example(history=VERSION_THAT_IS_NOT_RAISED)
@example(history=VERSION_THAT_GOES_BACK)
@example(history=LOST_BY_A_CRASH_THEN_TAKEN_BACK)
@example(history=LOST_WITHOUT_VERSION_THEN_TAKEN_BACK)
@example(history=OTHER_CONTENT_UNDER_AN_ID_IN_DOUBT)
@example(history=DOUBT_THAT_ANOTHER_VERSION_ENDED)
@example(history=STALE_TWIN_WHILE_THE_RUN_GOES_ON)
def test_stage_1_holds_what_the_source_says_or_the_item_is_not_counted_as_in(
    new_office: Callable[[], BackOffice], history: list[Callable[[BackOffice], None]]
) -> None:
    office = new_office()
    for happening in history:
        happening(office)
    for mode in ("changed", "full", "changed"):
        synced = office.sync(mode)
        assert synced is not None
        check(office, synced)
        check_without_version(office)


def check(office: BackOffice, synced: Synced) -> None:
    """Check what a sync says against what Stage 1 holds; nothing was edited while it ran."""
    codes = synced.codes()
    wanted = {key: winner(office, key) for key in office.tenants.distinct("id")}
    for key, document in wanted.items():
        errors = codes.get(key, {None}) - {"DUPLICATE_KEY", "SUPERSEDED"}
        counts_as_in = errors <= {None}
        item = office.record(key)
        assert counts_as_in == ("not_in_since" not in item), (key, codes, item)
        if counts_as_in:
            held = office.stage1.items.get(key)
            assert held is not None, key
            assert held == body(document, held), (key, codes)
    if synced.status == "success":
        assert all(
            office.stage1.items[key] == body(document, office.stage1.items[key])
            for key, document in wanted.items()
        )


def check_without_version(office: BackOffice) -> None:
    """Check that a lone document which has neither version nor time is in, after a sound sync."""
    for key in office.tenants.distinct("id"):
        documents = list(office.tenants.find({"id": key}))
        (document, *others) = documents
        has_version = {"version", "updated_at", "updatedAt"} & set(document)
        if others or has_version or ("name" not in document and not is_deleted(document)):
            continue
        assert "not_in_since" not in office.record(key), office.record(key)


def is_deleted(document: Document) -> bool:
    return "deleted" in document or "deleted_at" in document


def winner(office: BackOffice, key: str) -> Document:
    """Return the document of a key that is to be in Stage 1."""

    def rank(document: Document) -> tuple[Any, ...]:
        changed = document.get("updated_at") or document.get("updatedAt")
        if isinstance(changed, datetime):
            changed = round(changed.timestamp() * 1000)
        has_version = "version" in document
        return not is_deleted(document), has_version, document.get("version", 0), changed or 0

    documents = list(office.tenants.find({"id": key}).sort("_id"))
    return max(documents, key=rank)


def body(document: Document, held: Document) -> Document:
    """Return what is to be held of a document; a name that it lacks may be any."""
    fields = {name: value for name, value in document.items() if name not in BOOKKEEPING}
    if is_deleted(document):
        known_name = {"name": held["name"]} if "name" in held else {}
        return {**known_name, **fields, "enabled": False}
    return {**fields, "enabled": True}
