"""Source collections of every kind that MongoDB has are read alike: whole, in order, exactly."""

import random
import struct
import uuid
from collections import Counter
from collections.abc import Iterator
from itertools import chain, pairwise
from typing import Any

import pytest
from bson import MaxKey, MinKey, ObjectId
from bson.raw_bson import RawBSONDocument
from pymongo import MongoClient
from pymongo.collection import Collection
from pymongo.database import Database
from pymongo.monitoring import (
    CommandFailedEvent,
    CommandListener,
    CommandStartedEvent,
    CommandSucceededEvent,
)

from scripts.local.mongod import find_mongod
from scripts.local.process import LOCALHOST, answers, free_port, running
from tasks.entities import ENTITY_TYPES, EntityType, entity_type_named
from tasks.mongo import CODEC, MongoRetry, identity
from tasks.mongo_errors import MongoRefused
from tasks.source.batch import Batch
from tasks.source.bookkeeping import natural_key_of
from tasks.source.item import InvalidItem, Item
from tasks.source.reader import SourceReader

Document = dict[str, Any]

TENANT = entity_type_named("tenant")
DOMAIN = entity_type_named("domain")
SOURCE = TENANT.collection
BASE = "base"
CASELESS = {"locale": "en", "strength": 2}
CLUSTERED = {"key": {"_id": 1}, "unique": True}
GROUPED = [{"$group": {"_id": "$_id", "document": {"$first": "$$ROOT"}}}]
GROUPED += [{"$replaceRoot": {"newRoot": "$document"}}]
COLLECTIONS: dict[str, Document] = {
    "ordinary": {},
    "collated": {"collation": CASELESS},
    "clustered": {"clusteredIndex": CLUSTERED},
    "clustered and collated": {"clusteredIndex": CLUSTERED, "collation": CASELESS},
    "capped": {"capped": True, "size": 20_000_000},
}
VIEWS: dict[str, Document] = {
    "view": {"pipeline": []},
    "view that is made anew each time": {"pipeline": GROUPED},
    "collated view": {"pipeline": [], "collation": CASELESS},
}
KINDS = [*COLLECTIONS, *VIEWS]
NOT_CAPPED = [kind for kind in KINDS if kind != "capped"]
"""Kinds that take any amount, and give up what they hold."""


class Commands(CommandListener):
    """Counts the commands that go to MongoDB."""

    def __init__(self) -> None:
        self.names: Counter[str] = Counter()

    def started(self, event: CommandStartedEvent) -> None:
        self.names[event.command_name] += 1

    def succeeded(self, event: CommandSucceededEvent) -> None:
        """It counts."""

    def failed(self, event: CommandFailedEvent) -> None:
        """It counts too."""


@pytest.fixture(scope="module")
def commands() -> Commands:
    return Commands()


@pytest.fixture(scope="module")
def client(mongodb_uri: str, commands: Commands) -> Iterator[MongoClient[Document]]:
    listeners = [commands]
    with MongoClient[Document](mongodb_uri, tz_aware=True, event_listeners=listeners) as client:
        yield client


@pytest.fixture
def database(client: MongoClient[Document]) -> Iterator[Database[Document]]:
    database = client.get_database(f"sources_{uuid.uuid4().hex[:12]}", codec_options=CODEC)
    yield database
    client.drop_database(database.name)


@pytest.fixture
def reader(database: Database[Document]) -> SourceReader:
    return SourceReader(database, MongoRetry(database.client, seconds=30))


def made(database: Database[Document], kind: str) -> Collection[Document]:
    """Make the source of a kind, and return the collection that its documents are put into."""
    if kind in COLLECTIONS:
        return database.create_collection(SOURCE, **COLLECTIONS[kind])
    database.create_collection(SOURCE, viewOn=BASE, **VIEWS[kind])
    return database[BASE]


@pytest.fixture(params=KINDS)
def source(request: pytest.FixtureRequest, database: Database[Document]) -> Collection[Document]:
    return made(database, request.param)


def tenant(**fields: Any) -> Document:
    return {"name": "T", **fields}


def source_ids(reader: SourceReader, batches: list[Batch]) -> list[Any]:
    return [
        item.source_id for batch in batches for item in chain.from_iterable(reader.pages(batch))
    ]


def assert_all_once(reader: SourceReader, batches: list[Batch], stored: list[Any]) -> None:
    """Check that the batches have each document once, and neither a gap nor an overlap."""
    assert isinstance(batches[0].start, MinKey)
    assert isinstance(batches[-1].end, MaxKey)
    assert all(before.end == after.start for before, after in pairwise(batches))
    read = Counter(identity(source_id) for source_id in source_ids(reader, batches))
    assert read == Counter(map(identity, stored))


MIXED: list[Any] = [MinKey(), None, -1, 2.5, 7, "a", "Ab", "ü", {"a": 1}, b"x", ObjectId(), True]
MIXED += [MaxKey()]


@pytest.mark.parametrize("max_batches", [1, 3, 20])
def test_every_document_is_read_once_whatever_its_id(
    source: Collection[Document], reader: SourceReader, max_batches: int
) -> None:
    ids = random.Random(1).sample(MIXED, len(MIXED))
    source.insert_many([tenant(_id=source_id, id=f"id {source_id}") for source_id in ids])
    batches = reader.plan(TENANT, 3, max_batches)
    assert len(batches) == (len(ids) - 1 if max_batches == 20 else max_batches)
    assert_all_once(reader, batches, ids)
    in_order = [identity(each["_id"]) for each in source.database[SOURCE].find(sort=[("_id", 1)])]
    assert list(map(identity, source_ids(reader, batches))) == in_order


@pytest.mark.parametrize("make_id", [int, str, "{:06}".format], ids=["numbers", "texts", "padded"])
def test_every_document_of_many_is_read_once(
    source: Collection[Document], reader: SourceReader, make_id: Any
) -> None:
    ids = [make_id(number) for number in range(2_500)]
    source.insert_many([tenant(_id=source_id) for source_id in random.Random(1).sample(ids, 2_500)])
    for concurrency, max_batches in [(4, 10), (1, 1)]:
        batches = reader.plan(TENANT, concurrency, max_batches)
        assert sum(batch.size for batch in batches) == len(ids)
        assert max(batch.size for batch in batches) <= -(-len(ids) // len(batches))
        assert_all_once(reader, batches, ids)


@pytest.mark.usefixtures("source")
def test_an_empty_source_has_no_batches(reader: SourceReader) -> None:
    assert reader.plan(TENANT, 3, 10) == []
    assert list(reader.duplicates(TENANT)) == []
    assert reader.twins(TENANT, ["acme"]) == []


TWINS = [
    tenant(_id=1, id="acme", version=1),
    tenant(_id=2, id="Acme", version=1),
    tenant(_id=3, id="acme", version=2),
    tenant(_id=4, id="ACME"),
    tenant(_id=5, id="gone", version=9, deletedAt=1),
    tenant(_id=6, id="gone", version=1, deletedAt="3000-01-01"),
    tenant(_id=7, id="gone", version=1, isDeleted=False),
    tenant(_id=8, id="cafe"),
    tenant(_id=9, id="café"),
    tenant(_id=10, id=5),
    tenant(_id=11, id="5"),
    tenant(_id="text", id=None),
    tenant(_id=12, id="text"),
]
HEX = "507f1f77bcf86cd799439011"
OID = ObjectId(HEX)
HEX_TWINS = [
    tenant(_id=13, id=HEX, updatedAt=5),
    tenant(_id=14, id=OID, updatedAt=6),
    tenant(_id=15, id=HEX.upper()),
    tenant(_id=OID, updatedAt=4),
]


def test_of_documents_of_one_key_one_is_sent(
    source: Collection[Document], reader: SourceReader
) -> None:
    source.insert_many([*TWINS, *HEX_TWINS])
    duplicates = list(reader.duplicates(TENANT))
    lost = {twin.source_id: twin.natural_key for twin in duplicates}
    assert lost == {1: "acme", 5: "gone", 7: "gone", 13: HEX, OID: HEX}
    assert len(duplicates) == len(lost)


KEYS: list[tuple[list[str], list[Any]]] = [
    (["acme"], [1, 3]),
    (["Acme", "ACME"], [2, 4]),
    (["gone", "cafe", "none"], [5, 6, 7, 8]),
    (["5", "text"], [11, 12]),
    ([HEX], [13, 14, OID]),
    ([HEX.upper()], [15]),
    ([], []),
]


@pytest.mark.parametrize("is_indexed", [False, True], ids=["", "indexed"])
def test_the_documents_of_a_key(
    source: Collection[Document], reader: SourceReader, is_indexed: bool
) -> None:
    source.insert_many([*TWINS, *HEX_TWINS])
    if is_indexed:
        source.create_index("id")
    for keys, found in KEYS:
        twins = reader.twins(TENANT, keys)
        assert [twin.source_id for twin in twins] == found
        assert {twin.natural_key for twin in twins} <= set(keys)


def test_what_ranks_twins_is_read(source: Collection[Document], reader: SourceReader) -> None:
    source.insert_many(TWINS)
    twins = {twin.source_id: twin for twin in reader.twins(TENANT, ["acme", "gone"])}
    assert [twins[each].version for each in (1, 3, 5)] == [1, 2, 9]
    assert [twins[each].is_deleted for each in (5, 6, 7)] == [True, False, False]


def test_keys_as_mongodb_works_them_out_are_those_of_the_items(
    source: Collection[Document], reader: SourceReader, database: Database[Document]
) -> None:
    odd: list[Any] = ["", "k" * 1_024, "k" * 1_025, "😀" * 1_024, "😀" * 1_025, ["a"], {"a": 1}]
    odd += [True, 1.5, "$name", "a.b", "a\0b"]
    documents = [
        *TWINS,
        *HEX_TWINS,
        *(tenant(_id=f"odd {at}", id=key) for at, key in enumerate(odd)),
    ]
    source.insert_many(documents)
    expected = Counter(natural_key_of(TENANT, document) for document in documents)

    del expected[None]
    present = reader.present(TENANT)
    if not isinstance(present, dict):
        assert present == set(expected)
        return
    database.outer.insert_one({})
    pipeline = [{"$match": {"_id": None}}, {"$unionWith": present}]
    yielded = Counter(each["key"] for each in database.outer.aggregate(pipeline))
    del yielded[None]
    assert yielded == expected


def test_keys_of_a_type_that_has_no_id(database: Database[Document], reader: SourceReader) -> None:
    hosts = ["a", "a", "A", str(OID), OID]
    database[DOMAIN.collection].insert_many(
        [{"_id": at, "id": "same", "host": host} for at, host in enumerate(hosts)]
    )
    assert [twin.source_id for twin in reader.duplicates(DOMAIN)] == [1, 4]
    assert [twin.source_id for twin in reader.twins(DOMAIN, [str(OID)])] == [3, 4]


def text(name: bytes, value: bytes) -> bytes:
    return b"\x02" + name + b"\0" + struct.pack("<i", len(value) + 1) + value + b"\0"


def raw(*elements: bytes) -> RawBSONDocument:
    content = b"".join(elements)
    return RawBSONDocument(struct.pack("<i", len(content) + 5) + content + b"\0")


def test_what_can_not_be_read_is_in_a_page_too(
    source: Collection[Document], reader: SourceReader, commands: Commands
) -> None:
    source.insert_many([tenant(_id=f"{number:04}", id=str(number)) for number in range(1_500)])
    source.insert_one(raw(text(b"_id", b"0500x"), text(b"id", b"acme"), text(b"name", b"\xff")))
    source.insert_one(raw(text(b"_id", b"0999x"), text(b"id", b"acme"), text(b"\xff", b"name")))
    (batch,) = reader.plan(TENANT, 1, 1)
    commands.names.clear()
    pages = list(reader.pages(batch))

    items = list(chain.from_iterable(pages))
    assert [len(page) for page in pages][:1] == [1_000]
    places = [place for place, item in enumerate(items) if isinstance(item, InvalidItem)]
    assert places == [501, 1_001]
    assert len(items) == len({item.source_id for item in items}) == 1_502
    assert commands.names["getMore"] == commands.names["killCursors"] == 0


def test_twins_that_can_not_be_read_are_named_as_in_their_batch(
    source: Collection[Document], reader: SourceReader
) -> None:
    key = text(b"id", b"acme")
    source.insert_one(raw(text(b"_id", b"3\xff"), key, text(b"name", b"bytes in _id")))
    source.insert_one(raw(text(b"_id", b"1"), key, text(b"name", b"\xff")))
    source.insert_one(raw(text(b"_id", b"2"), key, text(b"name", b"legible")))
    source.insert_one(raw(text(b"_id", b"4" * 3_000), key, text(b"name", b"long _id")))
    read = set(source_ids(reader, reader.plan(TENANT, 1, 1)))
    assert len(read) == 4
    assert {twin.source_id for twin in reader.twins(TENANT, ["acme"])} == read
    lost = [twin.source_id for twin in reader.duplicates(TENANT)]
    assert len(lost) == 3
    assert set(lost) < read


def test_a_thousand_documents_that_can_not_be_read_stand_in_no_ones_way(
    source: Collection[Document], reader: SourceReader
) -> None:
    unreadable = [raw(text(b"_id", b"%04d" % at), text(b"n", b"\xff")) for at in range(2_100)]
    source.insert_many([tenant(_id="0"), *unreadable, tenant(_id="9")])
    for max_batches in (1, 3):
        read = source_ids(reader, reader.plan(TENANT, 1, max_batches))
        assert len(read) == len(set(read)) == 2_102
        assert (read[0], read[-1]) == ("0", "9")


def test_a_page_has_a_thousand_documents_by_one_query(
    source: Collection[Document], reader: SourceReader, commands: Commands
) -> None:
    source.insert_many([tenant(_id=number, id=str(number)) for number in range(2_500)])
    (batch,) = reader.plan(TENANT, 1, 1)
    is_view = source.name == BASE
    commands.names.clear()
    pages = reader.pages(batch)
    for size in (1_000, 1_000, 500):
        page = next(pages)
        assert len(page) == size
        assert all(isinstance(item, Item) for item in page)
    assert commands.names == Counter({"find": 6 if is_view else 3})
    assert list(pages) == []


@pytest.mark.parametrize("source", NOT_CAPPED, indirect=True)
def test_a_page_ends_at_16_mib(source: Collection[Document], reader: SourceReader) -> None:
    large = "x" * 6_000_000
    source.insert_many([tenant(_id=number, id=str(number), logo=large) for number in range(4)])
    (batch,) = reader.plan(TENANT, 1, 1)
    assert [len(page) for page in reader.pages(batch)] == [2, 2]


@pytest.mark.parametrize("source", NOT_CAPPED, indirect=True)
def test_a_document_that_is_deleted_between_two_pages_takes_no_other_with_it(
    source: Collection[Document], reader: SourceReader
) -> None:
    source.insert_many([tenant(_id=number, id=str(number)) for number in range(1_500)])
    (batch,) = reader.plan(TENANT, 1, 1)
    pages = reader.pages(batch)
    read = [item.source_id for item in next(pages)]
    source.delete_many({"_id": {"$in": [0, 998, 999]}})
    read += [item.source_id for item in chain.from_iterable(pages)]
    assert read == list(range(1_500))


@pytest.mark.parametrize(("documents", "keys"), [(2_000, 500), (4_000, 1_000)])
def test_looking_for_duplicates_takes_a_few_rounds_however_many_there_are(
    source: Collection[Document],
    reader: SourceReader,
    commands: Commands,
    documents: int,
    keys: int,
) -> None:
    source.insert_many([tenant(_id=at, id=f"key {at % keys}") for at in range(documents)])
    assert reader.plan(TENANT, 1, 1)  # asks what kind of a collection it is
    commands.names.clear()
    assert len(list(reader.duplicates(TENANT))) == documents - keys
    assert commands.names["aggregate"] <= 1
    assert commands.names["find"] <= 5 * (documents / 1_000 + 2)


PROFILED = ["ordinary", "collated", "clustered", "capped", "view"]


@pytest.mark.parametrize("kind", PROFILED)
@pytest.mark.parametrize("count", [3_000, 6_000])
def test_planning_looks_at_each_document_a_few_times_however_many_there_are(
    database: Database[Document], reader: SourceReader, kind: str, count: int
) -> None:
    source = made(database, kind)
    source.insert_many([tenant(_id=at, id=f"key {at // 2}") for at in range(count)])
    database.command("profile", 2)
    reader.plan(TENANT, 10, 100)
    planned = examined(database)
    assert len(list(reader.duplicates(TENANT))) == count // 2
    database.command("profile", 0)
    found = examined(database) - planned
    assert planned["docs"] <= 2 * count + 2_000
    # To group the keys, to rank the twins, and to see whether they can be read.
    assert 3 * count <= found["docs"] <= 3 * count + 100
    assert planned["keys"] + found["keys"] <= 5 * count


def examined(database: Database[Document]) -> Counter[str]:
    """Return how many documents and index keys MongoDB has looked at."""
    looked_at: Counter[str] = Counter()
    for each in database["system.profile"].find({"ns": {"$regex": f"({SOURCE}|{BASE})$"}}):
        looked_at["docs"] += each.get("docsExamined", 0)
        looked_at["keys"] += each.get("keysExamined", 0)
    return looked_at


@pytest.mark.parametrize("kind", PROFILED)
def test_a_thousand_keys_are_looked_up_in_an_index(
    database: Database[Document], reader: SourceReader, kind: str
) -> None:
    source = made(database, kind)
    source.insert_many([tenant(_id=at, id=f"key {at}") for at in range(8_000)])
    source.create_index("id")
    database.command("profile", 2)
    twins = reader.twins(TENANT, [f"key {at}" for at in range(4_000, 5_000)])
    database.command("profile", 0)
    assert [twin.source_id for twin in twins] == list(range(4_000, 5_000))
    assert examined(database)["docs"] == 1_000


COPIES = [{"$set": {"copy": {"$range": [0, 3]}}}, {"$unwind": "$copy"}]


@pytest.mark.parametrize("options", [{}, {"collation": CASELESS}], ids=["exact", "collated"])
def test_documents_of_equal_ids_are_all_read_even_across_pages(
    database: Database[Document], reader: SourceReader, options: Document
) -> None:
    """Neither 1,000 nor the size of a batch is a multiple of three, or of three pairs."""
    database.create_collection(SOURCE, viewOn=BASE, pipeline=COPIES, **options)
    ids = [f"{letter}{at:04}" for at in range(400) for letter in "aA"]
    database[BASE].insert_many([tenant(_id=source_id) for source_id in ids])
    for max_batches in (1, 7):
        assert_all_once(reader, reader.plan(TENANT, 1, max_batches), 3 * ids)


def test_a_view_may_leave_the_ids_out_or_make_lists_of_them(
    database: Database[Document], reader: SourceReader
) -> None:
    odd = {
        "$cond": [{"$lt": ["$_id", 2]}, "$$REMOVE", {"$cond": [{"$lt": ["$_id", 4]}, [], "$_id"]}]
    }
    database.create_collection(SOURCE, viewOn=BASE, pipeline=[{"$set": {"_id": odd}}])
    database[BASE].insert_many([tenant(_id=number, id=str(number)) for number in range(6)])
    items = list(chain.from_iterable(reader.pages(Batch("tenant", "", MinKey(), MaxKey(), 6))))
    faults = [item.natural_key for item in items if isinstance(item, InvalidItem)]
    assert sorted(map(str, faults)) == ["0", "1", "2", "3"]
    assert [item.source_id for item in items if isinstance(item, Item)] == [4, 5]


def test_a_view_may_give_the_ids_last(database: Database[Document], reader: SourceReader) -> None:
    last = [{"$replaceRoot": {"newRoot": {"id": "$id", "name": "$name", "_id": "$_id"}}}]
    database.create_collection(SOURCE, viewOn=BASE, pipeline=last)
    database[BASE].insert_many([tenant(_id="ü", id="a"), tenant(_id={"a": 1}, id="b")])
    (batch,) = reader.plan(TENANT, 1, 1)
    items = list(chain.from_iterable(reader.pages(batch)))
    assert [type(item) for item in items] == [Item, Item]


def test_which_collections_exist(database: Database[Document], reader: SourceReader) -> None:
    assert reader.existing(ENTITY_TYPES) == []
    database.create_collection(DOMAIN.collection)
    database.create_collection(SOURCE, viewOn=BASE, pipeline=[])
    database.create_collection("another")
    assert reader.existing(ENTITY_TYPES) == [SOURCE, DOMAIN.collection]
    assert reader.existing([DOMAIN]) == [DOMAIN.collection]


@pytest.fixture(scope="module")
def reader_with_few_rights(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SourceReader]:
    """A reader of a view and a collection of one document each, who may do nothing but find."""
    folder, port = tmp_path_factory.mktemp("mongod-auth"), free_port()
    options = ["--port", str(port), "--bind_ip", LOCALHOST, "--auth", "--nounixsocket"]
    with running(
        [str(find_mongod()), "--dbpath", str(folder), *options],
        name="mongod",
        ready=lambda: answers(f"http://{LOCALHOST}:{port}", within_seconds=5),
        log_path=folder / "mongod.log",
    ):
        address, owner, few = f"{LOCALHOST}:{port}", "owner:secret@", "few:secret@"
        with MongoClient[Document](f"mongodb://{address}") as first:
            first.admin.command("createUser", "owner", pwd="secret", roles=["root"])
        with MongoClient[Document](f"mongodb://{owner}{address}") as root:
            made(root["sources"], "collated view")
            root["sources"][BASE].insert_one(tenant(_id=1, id="acme"))
            root["sources"][DOMAIN.collection].insert_one({"_id": 1, "host": "a"})
            may_find = [
                {"resource": {"db": "sources", "collection": name}, "actions": ["find"]}
                for name in (SOURCE, DOMAIN.collection)
            ]
            root.admin.command("createRole", "finder", privileges=may_find, roles=[])
            root.admin.command("createUser", "few", pwd="secret", roles=["finder"])
        with MongoClient[Document](f"mongodb://{few}{address}", tz_aware=True) as client:
            database = client.get_database("sources", codec_options=CODEC)
            yield SourceReader(database, MongoRetry(client, seconds=30))


@pytest.mark.parametrize("entity_type", [TENANT, DOMAIN], ids=["view", "collection"])
def test_the_right_to_find_in_the_collections_is_enough(
    reader_with_few_rights: SourceReader, entity_type: EntityType
) -> None:
    reader = reader_with_few_rights
    assert reader.existing(ENTITY_TYPES) == [SOURCE, DOMAIN.collection]
    batches = reader.plan(entity_type, 1, 1)
    assert source_ids(reader, batches) == [1]
    assert list(reader.duplicates(entity_type)) == []
    assert len(reader.twins(entity_type, ["acme", "a"])) == 1


def test_a_view_that_can_not_be_made_is_refused(
    database: Database[Document], reader: SourceReader
) -> None:
    database.create_collection(
        SOURCE, viewOn=BASE, pipeline=[{"$set": {"a": {"$divide": [1, "$b"]}}}]
    )
    database[BASE].insert_one({"b": 0})
    with pytest.raises(MongoRefused):
        reader.plan(TENANT, 1, 1)
