"""Requests: under which id an item goes, and what Stage 1 takes for a repeat; a row for each rule.

Its letters are contents, its numbers versions; `confirmed` and `in_doubt` are what Stage 1 got.
"""

from dataclasses import dataclass
from typing import Any

import pytest

from tasks.entities import entity_type_named
from tasks.errors import ErrorClass, ItemError
from tasks.request import request_of
from tasks.source.item import Item
from tasks.source.request_id import content_version, request_id
from tasks.trail.items import Confirmed, ItemRecord, Sent
from tests.trail_documents import RUN, at, confirmed, item_record, sent

Version = int | str | None
Got = tuple[Version, str]
"""Version and content."""

NEW, IN = {"is_new": True}, {"is_in": True}
SENT_BEFORE: dict[str, Any] = {}
NOT_RAISED, REUSED = {"code": "VERSION_NOT_RAISED"}, {"code": "VERSION_REUSED"}
WHEN = "2024-01-01 00:00:07 UTC (run 507f1f77bcf86cd799439011)"


def item(version: Version, content: str) -> Item:
    body = {"id": "acme", "name": content}
    return Item(entity_type_named("tenant"), 1, "acme", version, body)


def id_of(version: int | str) -> str:
    return request_id("tenant", "acme", version)


def chain(*contents: str) -> str:
    """Return the version of the last of these contents, when each came after the one before."""
    version: str | None = None
    for content in contents:
        version = content_version(item(None, content).digest, version and id_of(version))
    assert version is not None
    return version


def got(version: int | str, content: str) -> Sent:
    digest = item(version, content).digest
    return sent(id_of(version), version=version, digest=digest, run_id=RUN, at=at(7))


@dataclass(frozen=True)
class On:
    """What is on record: what was confirmed, oldest first, and what was announced since."""

    confirmed: tuple[tuple[int | str, str], ...] = ()
    in_doubt: tuple[tuple[int | str, str], ...] = ()

    def record(self) -> ItemRecord:
        confirmations = [got(*each) for each in self.confirmed]
        last: Confirmed | None = None
        if confirmations:
            fields = confirmations[-1].model_dump()
            last = confirmed(fields.pop("request_id"), **fields)
        return item_record(
            confirmed=last,
            confirmed_ids=tuple(dict.fromkeys(each.request_id for each in confirmations)),
            in_doubt=tuple(got(*each) for each in self.in_doubt),
        )


@pytest.mark.parametrize(
    ("known", "version", "content", "goes_as", "expected"),
    [
        pytest.param(None, 1, "A", 1, NEW, id="never seen"),
        pytest.param(On(), 1, "A", 1, NEW, id="only failed so far"),
        pytest.param(On(((1, "A"),)), 1, "A", 1, IN, id="in"),
        pytest.param(On(((1, "A"),)), 2, "B", 2, NEW, id="changed"),
        pytest.param(On(((1, "A"),)), 2, "A", 2, NEW, id="version raised, same content"),
        pytest.param(On(((1, "A"),)), 1, "B", 1, NOT_RAISED, id="version not raised"),
        pytest.param(On(((2, "A"),)), 1, "B", 1, NEW, id="lower, but never sent"),
        pytest.param(On(((1, "A"), (2, "B"))), 1, "A", 1, REUSED, id="version back, content too"),
        pytest.param(On(((1, "A"), (2, "B"))), 1, "C", 1, REUSED, id="version back, new content"),
        pytest.param(
            On(((1, "A"), (2, "B"))), 1, "B", 1, SENT_BEFORE, id="version back, content as held"
        ),
        pytest.param(On(((1, "A"), (2, "B"))), 3, "A", 3, NEW, id="content back, version raised"),
        pytest.param(On((), ((1, "A"),)), 1, "A", 1, SENT_BEFORE, id="first one in doubt"),
        pytest.param(On((), ((1, "A"),)), 1, "B", 1, NOT_RAISED, id="first in doubt, edited"),
        pytest.param(On((), ((1, "A"),)), 2, "B", 2, NEW, id="first in doubt, raised"),
        pytest.param(On(((1, "A"),), ((2, "B"),)), 2, "B", 2, SENT_BEFORE, id="in doubt, again"),
        pytest.param(On(((1, "A"),), ((2, "B"),)), 2, "C", 2, NOT_RAISED, id="in doubt, edited"),
        pytest.param(On(((1, "A"),), ((2, "B"),)), 3, "B", 3, NEW, id="in doubt, raised"),
        pytest.param(On(((1, "A"),), ((2, "B"),)), 1, "A", 1, REUSED, id="in doubt, back"),
        pytest.param(
            On(((1, "A"),), ((2, "A"),)), 1, "A", 1, REUSED, id="in doubt, back to its content"
        ),
        pytest.param(
            On(((1, "A"),), ((2, "B"), (3, "C"))), 2, "B", 2, REUSED, id="two in doubt, the older"
        ),
        pytest.param(
            On(((1, "A"),), ((2, "B"), (3, "C"))), 3, "C", 3, SENT_BEFORE, id="two, the newer"
        ),
    ],
)
def test_items_with_a_version(
    known: On | None, version: int, content: str, goes_as: int, expected: dict[str, Any]
) -> None:
    check(known, item(version, content), goes_as, expected)


@pytest.mark.parametrize(
    ("known", "content", "goes_as", "expected"),
    [
        pytest.param(None, "A", chain("A"), NEW, id="never seen"),
        pytest.param(On(((chain("A"), "A"),)), "A", chain("A"), IN, id="in"),
        pytest.param(On(((chain("A"), "A"),)), "B", chain("A", "B"), NEW, id="changed"),
        pytest.param(
            On(((chain("A"), "A"), (chain("A", "B"), "B"))),
            "A",
            chain("A", "B", "A"),
            NEW,
            id="content that comes back",
        ),
        pytest.param(
            On(((chain("A"), "A"), (chain("A", "B"), "B"), (chain("A", "B", "A"), "A"))),
            "B",
            chain("A", "B", "A", "B"),
            NEW,
            id="and forth again",
        ),
        pytest.param(
            On(((chain("A"), "A"), (chain("A", "B"), "B"), (chain("A", "B", "A"), "A"))),
            "A",
            chain("A", "B", "A"),
            IN,
            id="a full run repeats the id that was confirmed",
        ),
        pytest.param(
            On(((chain("A"), "A"),), ((chain("A", "B"), "B"),)),
            "B",
            chain("A", "B"),
            SENT_BEFORE,
            id="after a crash the same id",
        ),
        pytest.param(
            On(((chain("A"), "A"),), ((chain("A", "B"), "B"),)),
            "A",
            chain("A", "B", "A"),
            NEW,
            id="back while in doubt",
        ),
        pytest.param(
            On((), ((chain("A"), "A"),)), "B", chain("A", "B"), NEW, id="first one in doubt"
        ),
        pytest.param(On(((7, "A"),)), "A", 7, IN, id="its version was removed"),
        pytest.param(
            On(((7, "A"),)),
            "B",
            content_version(item(None, "B").digest, id_of(7)),
            NEW,
            id="its version was removed, and it was changed",
        ),
        pytest.param(On(((7, "A"),), ((8, "A"),)), "A", 8, SENT_BEFORE, id="in doubt, as content"),
    ],
)
def test_items_whose_content_decides(
    known: On | None, content: str, goes_as: int | str, expected: dict[str, Any]
) -> None:
    check(known, item(None, content), goes_as, expected)


@pytest.mark.parametrize(
    ("content", "expected"), [("A", NEW), ("B", NEW)], ids=["as it is", "changed"]
)
def test_content_that_gets_a_version_is_a_new_request(
    content: str, expected: dict[str, Any]
) -> None:
    check(On(((chain("A"), "A"),)), item(1, content), 1, expected)


def check(known: On | None, sent_item: Item, goes_as: int | str, expected: dict[str, Any]) -> None:
    request = request_of(sent_item, known and known.record())
    assert (request.item, request.version) == (sent_item, goes_as)
    assert request.request_id == id_of(goes_as)
    told = {"is_new": request.is_new, "is_in": request.is_in}
    code = request.repeat and request.repeat.code
    assert {**told, "code": code} == {"is_new": False, "is_in": False, "code": None, **expected}


@pytest.mark.parametrize(
    ("known", "version", "code", "message"),
    [
        (
            On(((1, "A"),)),
            1,
            "VERSION_NOT_RAISED",
            f"Stage 1 has other content as version 1, since {WHEN}, "
            "and takes this for a repeat: raise the version (or updated_at) of the document",
        ),
        (
            On((), ((1, "A"),)),
            1,
            "VERSION_NOT_RAISED",
            f"Stage 1 may have other content as version 1, since {WHEN}, "
            "and takes this for a repeat: raise the version (or updated_at) of the document",
        ),
        (
            On(((1, "A"), (2, "B"))),
            1,
            "VERSION_REUSED",
            f"Stage 1 had version 1 before, has got version 2 since {WHEN}, and takes this for a "
            "repeat: raise the version (or updated_at) of the document above 2",
        ),
        (
            On(((1, "A"),), ((2, "B"),)),
            1,
            "VERSION_REUSED",
            f"Stage 1 had version 1 before, may have got version 2 since {WHEN}, and takes this "
            "for a repeat: raise the version (or updated_at) of the document above 2",
        ),
    ],
)
def test_a_repeat_says_since_when_and_what_to_do(
    known: On, version: int, code: str, message: str
) -> None:
    request = request_of(item(version, "C"), known.record())
    assert request.repeat == ItemError(code, message, ErrorClass.PERMANENT)


def test_the_bodies_that_decide_are_compared_as_canonical_json() -> None:
    known = On(((1, "A"),)).record()
    turned = Item(entity_type_named("tenant"), 2, "acme", 1, {"name": "A", "id": "acme"})
    assert request_of(turned, known).is_in


@pytest.mark.parametrize(
    ("known", "version", "content", "is_uncertain"),
    [
        pytest.param(On((), ((1, "A"),)), 1, "A", False, id="the same again"),
        pytest.param(On((), ((1, "A"),)), 1, "B", True, id="edited under an id in doubt"),
        pytest.param(On((), ((1, "A"), (2, "B"))), 1, "A", True, id="the older of two in doubt"),
        pytest.param(On((), ((1, "A"), (2, "B"))), 1, "C", True, id="edited under the older"),
        pytest.param(On((), ((1, "A"), (2, "B"))), 3, "C", False, id="under a new id"),
        pytest.param(On(((1, "A"),)), 1, "B", False, id="edited under a confirmed id"),
        pytest.param(On(((1, "A"), (2, "B"))), 1, "A", False, id="back to a confirmed id"),
        pytest.param(On(((1, "A"),), ((2, "B"),)), 1, "C", False, id="back, beside a doubt"),
    ],
)
def test_what_stage_1_gets_under_an_id_in_doubt_can_not_be_told(
    known: On, version: int, content: str, is_uncertain: bool
) -> None:
    request = request_of(item(version, content), known.record())
    assert request.is_uncertain is is_uncertain
    assert request.sent_digest == ("" if is_uncertain else item(version, content).digest)


def test_an_id_that_was_in_doubt_when_another_was_confirmed_stays_one_that_stage_1_may_have() -> (
    None
):
    known = On(((3, "B"),)).record().model_copy(update={"doubted_ids": (id_of(1),)})
    request = request_of(item(1, "A"), known)
    assert request.repeat is not None
    assert (request.repeat.code, request.is_new) == ("VERSION_REUSED", False)
    assert request.is_uncertain, "if Stage 1 never got it, it gets it now"


def test_what_can_not_be_told_is_not_taken_for_in_nor_announced_again() -> None:
    unknown = sent(id_of(1), version=1, digest="", run_id=RUN, at=at(7))
    known = item_record(in_doubt=(got(1, "A"), unknown))
    for content in ("A", "B"):
        request = request_of(item(1, content), known)
        assert request.repeat is not None
        assert (request.repeat.code, request.is_uncertain) == ("VERSION_NOT_RAISED", False)
    without_version = request_of(item(None, "A"), known)
    assert (without_version.is_new, without_version.repeat) == (True, None)
    assert without_version.request_id != id_of(1)
