"""`python -m scripts.history`: what an operator sees of items, and of what would change."""

import json
import re
from typing import Any

import pytest
from bson import ObjectId

from tests.integration.test_history import (
    HOST,
    STEERING,
    STEERING_SHOWN,
    cells,
    history,
    id_of,
    refuse,
    told,
    told_as_json,
)
from tests.integration.world import World


def fact(text: str, label: str) -> str:
    """The value that stands beside a label, which is there once."""
    (value,) = [
        line.removeprefix(label).strip()
        for line in text.splitlines()
        if line.startswith(f"{label}  ")
    ]
    return value


def test_what_is_not_in_now_longest_first(world: World) -> None:
    first, second, third, _ = world.add_tenants(4)
    world.hub.misbehave(*refuse(first, second))
    world.sync(entities=["tenant"])
    world.hub.misbehave(*refuse(second, third))
    world.sync(entities=["tenant"])

    text = told(world, "--not-in")
    assert text.index(second) < text.index(third)
    assert first not in text
    row = cells(text, f"tenant/{second}")
    assert row[2:] == [f"NOT_FOUND: no {second} here", "2"]
    facts = told_as_json(world, "--not-in")["not_in"]
    assert [item["natural_key"] for item in facts["items"]] == [second, third]
    assert row[1] == facts["items"][0]["not_in_since"][5:16].replace("T", " ")

    assert "more are not shown" not in text
    limited = told(world, "--not-in", "--limit", "1")
    assert third not in limited
    assert "1 more are not shown: --limit shows more" in limited
    assert told_as_json(world, "--not-in", "--limit", "1")["not_in"]["total"] == 2

    world.hub.misbehave()
    world.database.source_tenants.delete_one({"id": first})
    run_id = id_of(world.sync(entities=["tenant"]))
    assert "No item is on record as not in" in told(world, "--not-in")
    recovered = [
        item["natural_key"] for item in told_as_json(world, run_id)["items"]["recovered"]["items"]
    ]
    assert recovered == [second, third]
    (gone,) = told_as_json(world, "--gone")["gone"]["items"]
    assert gone["natural_key"] == first
    gone_since = gone["gone_since"][5:16].replace("T", " ")
    assert cells(told(world, "--gone"), f"tenant/{first}") == [
        f"tenant/{first}",
        gone_since,
        "enabled",
    ]


def test_an_item_that_is_in(world: World) -> None:
    world.add_seed()
    first = world.sync()
    second = world.sync(entities=["domain"])

    text = told(world, f"domain/{HOST}")
    step = second.step(HOST)
    assert fact(text, "item") == f"domain {HOST}"
    assert fact(text, "Stage 1").startswith(world.hub.base_url)
    assert fact(text, "version") == str(step["version"])
    assert fact(text, "request_id") == step["request_id"]
    assert fact(text, "sync_id") == step["sync_id"]
    assert fact(text, "confirmed in run") == id_of(second)
    assert json.loads(fact(text, "body"))["host"] == HOST
    assert fact(text, "last outcome") == "ok"
    assert fact(text, "not in since (UTC)") == fact(text, "gone since (UTC)") == "-"
    assert text.index(id_of(first)) > text.rindex(id_of(second))
    ids = f"{id_of(first)} {first.step(HOST)['request_id']}"
    assert cells(text, ids)[2:] == [str(first.step(HOST)["version"]), "ok"]

    assert told(world, HOST) == text
    (facts,) = told_as_json(world, HOST)["items"]
    (record,) = facts["items"]
    assert record["confirmed"]["request_id"] == step["request_id"]
    assert [step["run_id"] for step in facts["history"]["items"]] == [id_of(second), id_of(first)]


def test_an_item_that_never_got_in(world: World) -> None:
    (key,) = world.add_tenants(1)
    world.hub.misbehave(*refuse(key))
    runs = [world.sync(entities=["tenant"]) for _ in range(3)]

    text = told(world, key, "--limit", "2")
    assert fact(text, "holds") == "nothing that it has confirmed"
    assert fact(text, "last outcome") == f"NOT_FOUND: no {key} here"
    assert fact(text, "last outcome in run") == id_of(runs[2])
    assert fact(text, "attempts since then") == "3"
    assert fact(text, "not in since (UTC)").startswith(f"{runs[0].document['started_at']:%Y-%m}")
    ids = f"{id_of(runs[1])} {runs[1].step(key)['request_id']}"
    assert cells(text, ids)[3] == f"NOT_FOUND: no {key} here"
    assert "1 more are not shown" in text
    assert id_of(runs[0]) not in text


def test_a_natural_key_alone_stands_for_every_type_that_has_it(world: World) -> None:
    world.add("tenant", {"id": "acme", "name": "Acme", "version": 1})
    world.add("client", {"id": "acme", "name": "Acme", "redirect_uris": [], "version": 1})
    world.add("tenant", {"id": "client/acme", "name": "Odd", "version": 1})
    world.sync()
    named = re.findall("^item +(.+?) *$", told(world, "acme"), re.MULTILINE)
    assert named == ["tenant acme", "client acme"]
    assert fact(told(world, "client/acme"), "item") == "client acme"
    assert fact(told(world, "tenant/client/acme"), "item") == "tenant client/acme"
    assert fact(told(world, "tenant/acme"), "item") == "tenant acme"


def test_a_run_id_wins_over_an_item_of_that_key(world: World) -> None:
    key = str(ObjectId())
    world.add("tenant", {"id": key, "name": "Acme", "version": 1})
    run = world.sync(entities=["tenant"])
    assert fact(told(world, key), "item") == f"tenant {key}"
    world.add("tenant", {"id": id_of(run), "name": "Same", "version": 1})
    world.sync(entities=["tenant"])
    assert fact(told(world, id_of(run)), "run name") == "tenant - manual"
    assert fact(told(world, f"tenant/{id_of(run)}"), "item") == f"tenant {id_of(run)}"


@pytest.mark.parametrize("option", ["--failed", "--changes"])
def test_what_only_a_run_has(world: World, option: str) -> None:
    (key,) = world.add_tenants(1)
    world.sync(entities=["tenant"])
    answer = history(world, key, option)
    assert (answer.returncode, answer.stdout) == (2, "")
    assert f"There is no run '{key}'" in answer.stderr


def test_an_item_whose_steps_have_expired_and_one_that_has_no_record(world: World) -> None:
    first, second = world.add_tenants(2)
    world.sync(entities=["tenant"])
    world.database.sync_steps.delete_one({"natural_key": first})
    world.database.sync_items.delete_one({"natural_key": second})
    text = told(world, first)
    assert fact(text, "last outcome") == "ok"
    assert "No run has it on record any more" in text
    text = told(world, second)
    assert "Versions and outcomes" in text
    assert "last outcome" not in text


def test_text_from_outside_steers_nothing(world: World) -> None:
    world.add("tenant", {"id": STEERING, "name": STEERING, "version": STEERING})
    world.hub.misbehave({"code": "NOT_FOUND", "message": STEERING})
    world.sync(entities=["tenant"])
    world.sync(entities=["tenant"], dry_run=True)
    world.hub.misbehave()
    failed = told(world, "--not-in")
    world.sync(entities=["tenant"])
    for text in (failed, told(world, STEERING)):
        assert STEERING_SHOWN in text
        assert "\x1b" not in text


def changes_of(world: World, *arguments: str) -> Any:
    return told_as_json(world, *arguments)["changes"]


def test_what_a_dry_run_would_change(world: World) -> None:
    keys = world.add_tenants(60)
    world.sync(entities=["tenant"])
    update = {"$set": {"name": "New", "version": 2}}
    world.database.source_tenants.update_one({"id": keys[7]}, update)
    world.add("tenant", {"id": "zeta", "name": "Z", "version": 1})
    run_id = id_of(world.sync(entities=["tenant"], mode="changed", dry_run=True))

    text = told(world, run_id)
    item = f"tenant/{keys[7]}"
    assert cells(text, item, "name") == [item, "name", '"Tenant-0007"', '"New"']
    assert cells(text, "tenant/zeta", "name") == ["tenant/zeta", "name", "-", '"Z"']
    assert "--changes" not in text
    changed, new = changes_of(world, run_id)
    assert (changed["natural_key"], new["natural_key"]) == (keys[7], "zeta")
    assert {"field": "name", "old": None, "new": '"Z"'} in new["changes"]
    assert changes_of(world, run_id, "--changes") == [changed, new]

    world.database.source_tenants.update_many({}, {"$set": {"name": "All", "version": 3}})
    run_id = id_of(world.sync(entities=["tenant"], dry_run=True))
    text = " ".join(told(world, run_id).split())
    assert (
        f"No more than 50 items are shown; all: python -m scripts.history {run_id} --changes"
        in text
    )
    assert len(changes_of(world, run_id)) == 50
    all_changes = told(world, run_id, "--changes")
    assert all(key in all_changes for key in keys)
    assert len(changes_of(world, run_id, "--changes")) == 61
