"""A hub that answers anything at all: each item ends as one step, in time, the others get in."""

import gzip
import json
import resource
import socket
from collections.abc import Mapping
from typing import Any

import pytest

from tests.integration.world import HUB_TOKEN, SyncRun, World

TIMEOUT_MS = 3000
DURATION_LIMIT_MS = 10 * TIMEOUT_MS
"""A busy machine may be late; without a deadline a drip here would take minutes."""
RETRY_MAX = 1
MIB = 1 << 20
OK = b'{"ok": true, "sync_id": "s"}'

Fault = dict[str, Any]


def raw(content: bytes) -> Fault:
    return {"raw": content.decode("latin-1")}


def response(body: bytes, *headers: bytes, status: bytes = b"200 OK") -> Fault:
    lines = [b"HTTP/1.1 " + status, b"Content-Length: %d" % len(body), *headers]
    return raw(b"\r\n".join(lines) + b"\r\n\r\n" + body)


def chunked(chunks: bytes) -> Fault:
    return raw(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunks)


def refusal(code: str, message: str) -> Fault:
    return response(json.dumps({"ok": False, "error": {"code": code, "message": message}}).encode())


NOT_AN_ANSWER: dict[str, Fault] = {
    "a byte over 1 MiB": {"body_bytes": MIB + 1},
    "over 1 MiB, chunked": chunked(b"110000\r\n" + OK.ljust(0x110000) + b"\r\n0\r\n\r\n"),
    "deep lists": response(b"[" * 1_000_000),
    "deep objects": response(b'{"ok":' * 150_000),
    "invalid UTF-8": response(b'{"ok": true, "sync_id": "\xff"}'),
    "a number of 5000 digits": response(b'{"ok": true, "sync_id": ' + b"9" * 5000 + b"}"),
    "a gzip that is none": response(OK, b"Content-Encoding: gzip"),
    "brotli": response(OK, b"Content-Encoding: br"),
    "a bomb": {"body_bytes": 50 * MIB, "compress": "gzip"},
    "HTML": response(b"<html>ok</html>", b"Content-Type: text/html"),
    "nothing": response(b""),
    "ok is a number": response(b'{"ok": 1}'),
    "ok is NaN": response(b'{"ok": NaN}'),
    "ok is text": response(b'{"ok": "true"}'),
    "ok twice, false at last": response(b'{"ok": true, "ok": false}'),
    "no content": raw(b"HTTP/1.1 204 No Content\r\n\r\n"),
    "code is a list": response(b'{"ok": false, "error": {"code": ["TIMEOUT"], "message": {}}}'),
}
NO_HTTP: dict[str, Fault] = {
    "nothing at all": raw(b""),
    "bare text": raw(OK),
    "bytes": raw(bytes(range(256)) * 100),
    "status 000": response(OK, status=b"000 Zero"),
    "status of four digits": response(OK, status=b"2000 OK"),
    "a protocol that nobody asked for": raw(b"HTTP/1.1 101 Switching\r\nUpgrade: x\r\n\r\n" + OK),
    "a header of 200 KB": response(OK, b"X: " + b"x" * 200_000),
    "10000 headers": response(OK, *[b"X-%d: xxxxxxxx" % number for number in range(10_000)]),
    "NUL in a header": response(OK, b"X: \x00"),
    "a header without name": response(OK, b": x"),
    "two lengths": response(OK, b"Content-Length: 5"),
    "a negative length": raw(b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n" + OK),
    "a length over 4300 digits": raw(
        b"HTTP/1.1 200 OK\r\nContent-Length: " + b"9" * 5000 + b"\r\n\r\n" + OK
    ),
    "shorter than its length": raw(b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n" + OK),
    "a chunk that is none": chunked(b"zz\r\n" + OK),
    "a chunk of negative size": chunked(b"-1\r\n" + OK),
    "a chunk of 2**80 bytes": chunked(b"100000000000000000000\r\n" + OK),
    "chunks without end": chunked(b"1c\r\n" + OK + b"\r\n"),
}
TOO_SLOW: dict[str, Fault] = {
    "dripping": {"drip_ms": 500},
    "dripping refusal": {"status": 503, "drip_ms": 500, "retry_after": "1"},
    "dripping header": {**raw(b"HTTP/1.1 200 OK\r\nX: " + b"x" * 10_000), "drip_ms": 50},
    "dripping 1xx": {**raw(b"HTTP/1.1 100 Continue\r\n\r\n" * 1000), "drip_ms": 20},
}
THROTTLING: dict[str, Fault] = {
    f"Retry-After: {name}": response(b"", b"Retry-After: " + value, status=b"503 Busy")
    for name, value in {
        "a number of 5000 digits": b"9" * 5000,
        "not UTF-8": b"\xff\xfe",
        "a date in the year 99999999999": b"Wed, 21 Oct 99999999999 07:28:10 GMT",
    }.items()
}
IN_ALL_THE_SAME: dict[str, Fault] = {
    "exactly 1 MiB": {"body_bytes": MIB},
    "another content type": response(OK, b"Content-Type: text/plain; charset=\xff"),
    "a byte order mark": response(b"\xef\xbb\xbf" + OK),
    "chunks of one byte": chunked(b"".join(b"1\r\n%c\r\n" % byte for byte in OK) + b"0\r\n\r\n"),
    "sync_id is a number": response(b'{"ok": true, "sync_id": 5}'),
    "sync_id is long": response(b'{"ok": true, "sync_id": "' + b"s" * 100_000 + b'"}'),
    "sync_id holds half a character": response(rb'{"ok": true, "sync_id": "\ud800\u0000s"}'),
    "more than its length": raw(b'HTTP/1.1 200 OK\r\nContent-Length: 12\r\n\r\n{"ok": true}HT'),
    "created": response(OK, status=b"201 Created"),
    "gzip": response(gzip.compress(OK), b"Content-Encoding: gzip"),
    "no length": raw(b"HTTP/1.1 200 OK\r\n\r\n" + OK),
}


@pytest.fixture
def world(world: World, monkeypatch: pytest.MonkeyPatch) -> World:
    monkeypatch.setenv("ADMIN_RETRY_MAX", str(RETRY_MAX))
    monkeypatch.setenv("ADMIN_RETRY_AFTER_MAX_MS", "100")
    monkeypatch.setenv("ADMIN_CONCURRENCY", "8")
    monkeypatch.setenv("ADMIN_BREAKER_FAILURES", "1000")
    return world


def sync(world: World, faults: Mapping[str, Fault]) -> SyncRun:
    """Sync an item for each fault, under its name, and a few that meet none."""
    world.add("tenant", *({"id": key, "name": key, "version": 1} for key in faults))
    others = set(world.add_tenants(3))
    world.hub.misbehave(*({"key": key, **fault} for key, fault in faults.items()))
    run = world.sync(entities=["tenant"])
    assert len(run.steps) == len(faults) + len(others)
    assert {key for key, code in run.codes().items() if code is None} >= others
    assert run.document["totals"]["total"] == len(run.steps)
    return run


def failed(run: SyncRun) -> dict[str, tuple[str, str, int]]:
    """Code, class and attempts of each item that is not in."""
    return {
        step["natural_key"]: (step["error"]["code"], step["error"]["class"], step["attempts"])
        for step in run.steps
        if not step["ok"]
    }


def test_what_is_no_answer_fails_the_item_for_good(world: World) -> None:
    run = sync(world, NOT_AN_ANSWER)
    assert failed(run) == dict.fromkeys(NOT_AN_ANSWER, ("UNEXPECTED_RESPONSE", "permanent", 1))
    assert "over 1 MiB" in run.step("a byte over 1 MiB")["error"]["message"]
    assert "over 1 MiB" in run.step("over 1 MiB, chunked")["error"]["message"]


def test_what_is_too_slow_is_over_in_time_and_tried_again(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ADMIN_TIMEOUT_MS", str(TIMEOUT_MS))
    run = sync(world, TOO_SLOW)
    assert failed(run) == dict.fromkeys(TOO_SLOW, ("TIMEOUT", "transient", 1 + RETRY_MAX))
    for step in run.steps:
        assert step["duration_ms"] < DURATION_LIMIT_MS


def test_what_is_no_http_is_tried_again(world: World) -> None:
    run = sync(world, NO_HTTP)
    assert failed(run) == dict.fromkeys(NO_HTTP, ("CONNECTION_ERROR", "transient", 1 + RETRY_MAX))
    for step in run.steps:
        if not step["ok"]:
            assert step["error"]["message"].isprintable()
            assert len(step["error"]["message"]) <= 500


def test_a_pause_that_nobody_could_keep_is_kept_up_to_the_limit(world: World) -> None:
    run = sync(world, {key: {**fault, "attempts": [1]} for key, fault in THROTTLING.items()})
    assert failed(run) == {}
    assert {run.step(key)["attempts"] for key in THROTTLING} == {2}


def test_a_strange_success_is_one(world: World) -> None:
    run = sync(world, IN_ALL_THE_SAME)
    assert failed(run) == {}
    assert run.step("sync_id is a number")["sync_id"] is None
    assert run.step("sync_id is long")["sync_id"] == "s" * 500
    assert run.step("sync_id holds half a character")["sync_id"] == "s"


def test_an_answer_that_breaks_off_anywhere_is_asked_for_again(world: World) -> None:
    whole = response(OK)["raw"]
    cuts = range(0, len(whole), 5)
    run = sync(world, {f"cut at {cut}": {"raw": whole[:cut], "attempts": [1]} for cut in cuts})
    assert failed(run) == {}
    assert {run.step(f"cut at {cut}")["attempts"] for cut in cuts} == {2}


def test_a_server_that_closes_each_connection_costs_no_attempt(world: World) -> None:
    keys = world.add_tenants(300)
    world.hub.misbehave({"close": True})
    run = world.sync(entities=["tenant"])
    assert run.document["totals"]["success"] == len(keys)
    assert {step["attempts"] for step in run.steps} == {1}


def test_a_redirect_is_not_followed(world: World) -> None:
    with socket.create_server(("127.0.0.2", 0)) as elsewhere:
        location = b"Location: http://127.0.0.2:%d/" % elsewhere.getsockname()[1]
        statuses = (b"301 Moved", b"302 Found", b"303 See", b"307 Temporary", b"308 Permanent")
        redirects = {s.decode(): response(OK, location, status=s) for s in statuses}
        run = sync(world, redirects)
        assert failed(run) == dict.fromkeys(redirects, ("UNEXPECTED_RESPONSE", "permanent", 1))
        elsewhere.settimeout(0)
        with pytest.raises(BlockingIOError):
            elsewhere.accept()


def test_texts_of_the_hub_are_clean_wherever_they_are_kept(world: World) -> None:
    dirty = f"no\x1b[31m\r\n\u202e\u2028\ud800\x00Bearer {HUB_TOKEN}" + "x" * 100_000
    cut = "y" * 490 + HUB_TOKEN
    run = sync(
        world,
        {
            "dirty": refusal(f"NEW\x00{HUB_TOKEN}\u202e", dirty),
            "cut": refusal("NEW", cut),
            "blank": refusal("\n", "\x00\r\n"),
            "no HTTP": raw(f"HTTP/1.1 200 {HUB_TOKEN}\x00\r\n\r\n".encode()),
            "no header": raw(f"HTTP/1.1 200 OK\r\n{HUB_TOKEN}\x1b\r\n\r\n".encode()),
        },
    )
    texts = [run.state.message, run.document["message"] or ""]
    for step in run.steps:
        if not step["ok"]:
            texts += [step["error"]["code"], step["error"]["message"]]
    for text in texts:
        assert text
        assert text.isprintable()
        assert HUB_TOKEN[:8] not in text
    assert len(run.step("dirty")["error"]["message"]) == 500
    assert run.step("cut")["error"]["message"] == "y" * 490 + "[redacted]"
    assert run.step("blank")["error"]["code"] == "UNEXPECTED_RESPONSE"


def test_a_body_of_any_size_takes_no_memory(world: World) -> None:
    before = _peak_bytes()
    run = sync(world, {"vast": {"body_bytes": 500 * MIB}})
    assert failed(run) == {"vast": ("UNEXPECTED_RESPONSE", "permanent", 1)}
    assert _peak_bytes() - before < 200 * MIB


def _peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
