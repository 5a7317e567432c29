"""A local Stage 1: the five upsert endpoints over MongoDB, with faults on demand."""

import argparse
import hmac
import io
import json
import os
import re
import socket
import sys
import threading
import time
import uuid
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from pydantic import BaseModel, ConfigDict, Field, SecretStr, TypeAdapter, ValidationError
from pymongo import MongoClient
from pymongo.database import Database
from pymongo.errors import DuplicateKeyError, PyMongoError

from scripts.local.process import LOCALHOST, StartFailed, serve_until_stopped
from tasks.entities import ENTITY_TYPES, EntityType
from tasks.errors import INVALID_TOKEN, MISSING_AUTH, NOT_FOUND, VALIDATION_ERROR

Document = dict[str, Any]

_REQUESTS_KEPT: Final = 200_000
_REQUEST_ID: Final = re.compile(r"[0-9a-f]{32}")
_PADDING_PART: Final = 65_536
_GARBAGE: Final = b"<html>\xff\xfe not JSON"


class Fault(BaseModel):
    """A misbehaviour: the first one that matches a request is carried out.

    `entity_type`, `key` and `attempts` (counted from 1 for each item since the last reset) say
    which requests; None means any. `delay_ms` comes first. Then the answer is, in this order:
    none (`drop`), `raw` (each character a byte) and the end of the connection, no JSON (`garbage`),
    a success that spaces make `body_bytes` long, `body` as it is, or a refusal with `status` and
    `code`; with delays alone the answer is the usual one. With `drip_ms` an answer goes out byte by
    byte, headers too, each that much after the one before. With `after_store` the item is stored
    first.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    entity_type: str | None = None
    key: str | None = None
    attempts: tuple[int, ...] | None = None
    status: int | None = None
    code: str | None = None
    message: str = "told to misbehave"
    delay_ms: int = 0
    drip_ms: int = 0
    drop: bool = False
    raw: str | None = Field(None, pattern=r"^[\x00-\xff]*$")
    garbage: bool = False
    body_bytes: int | None = None
    body: Any | None = None
    retry_after: str | None = None
    after_store: bool = False

    def matches(self, entity_type: str, key: str | None, attempt: int) -> bool:
        return (
            self.entity_type in (None, entity_type)
            and self.key in (None, key)
            and (self.attempts is None or attempt in self.attempts)
        )

    @property
    def only_delays(self) -> bool:
        """Whether the answer is the usual one, but late or slow."""
        answers = (self.raw, self.body_bytes, self.body, self.status, self.code)
        has_answer = any(answer is not None for answer in answers)
        return not (has_answer or self.drop or self.garbage)


Faults: Final = TypeAdapter(tuple[Fault, ...])


@dataclass
class SeenRequest:
    """One upsert request as the hub saw it; times are seconds since the epoch."""

    entity_type: str
    key: str | None
    request_id: str | None
    attempt: int
    received_at: float
    answered_at: float | None = None
    status: int | None = None
    outcome: str | None = None


class Observations:
    """What the hub has seen and how it was told to misbehave."""

    def __init__(self, faults: Sequence[Fault] = ()) -> None:
        self._lock = threading.Lock()
        self.faults = tuple(faults)
        self._start_anew()

    def forget(self) -> None:
        with self._lock:
            self.faults = ()
            self._start_anew()

    def _start_anew(self) -> None:
        self._requests: deque[SeenRequest] = deque(maxlen=_REQUESTS_KEPT)
        self._attempts: Counter[tuple[str, str | None]] = Counter()
        self._count = self._in_flight = self._max_in_flight = 0

    @contextmanager
    def request(
        self, entity_type: str, key: str | None, request_id: str | None
    ) -> Iterator[SeenRequest]:
        """Count a request as in flight until the block ends."""
        received_at = time.time()
        with self._lock:
            self._attempts[entity_type, key] += 1
            attempt = self._attempts[entity_type, key]
            seen = SeenRequest(entity_type, key, request_id, attempt, received_at)
            self._requests.append(seen)
            self._count += 1
            self._in_flight += 1
            self._max_in_flight = max(self._max_in_flight, self._in_flight)
        try:
            yield seen
        finally:
            with self._lock:
                self._in_flight -= 1

    def fault_for(self, seen: SeenRequest) -> Fault | None:
        for fault in self.faults:
            if fault.matches(seen.entity_type, seen.key, seen.attempt):
                return fault
        return None

    def requests(self) -> list[Document]:
        with self._lock:
            return [asdict(seen) for seen in self._requests]

    def stats(self) -> Document:
        with self._lock:
            return {
                "requests": self._count,
                "in_flight": self._in_flight,
                "max_in_flight": self._max_in_flight,
            }


@dataclass(frozen=True)
class Answer:
    """An HTTP response; without a status its content is all that is sent, and the last."""

    status: int | None
    content: bytes = b""
    outcome: str = "ok"
    retry_after: str | None = None
    padding: int = 0
    """How many spaces follow the content."""
    drip_seconds: float = 0
    """Pause after each byte."""


def _json_answer(status: int, body: Any, outcome: str, retry_after: str | None = None) -> Answer:
    return Answer(status, json.dumps(body).encode(), outcome, retry_after)


def _refusal(status: int, code: str, message: str) -> Answer:
    error = {"code": code, "message": message, "details": {}}
    return _json_answer(status, {"ok": False, "error": error}, code)


class HubStore:
    """The items that Stage 1 has accepted, and under which request ids."""

    def __init__(self, database: Database[Document]) -> None:
        self._database = database
        self._known: set[tuple[str, str]] = set()

    def upsert(self, entity_type: EntityType, request_id: str, key: str, item: Document) -> Answer:
        """Store an item once for each request id; its parents must be there."""
        accepted = self._database["accepted_requests"]
        repeated = accepted.find_one({"_id": request_id})
        if repeated is not None:
            return _json_answer(HTTPStatus.OK, repeated["response"], "repeated")
        missing = self._missing_parent(entity_type, item)
        if missing is not None:
            return _refusal(HTTPStatus.NOT_FOUND, NOT_FOUND, f"{missing} does not exist")
        items = self._database[entity_type.endpoint]
        items.replace_one({"_id": key}, {"_id": key, "item": item}, upsert=True)
        response = {"ok": True, "sync_id": uuid.uuid4().hex, entity_type.natural_key: key}
        try:
            accepted.insert_one({"_id": request_id, "response": response})
        except DuplicateKeyError:
            return self.upsert(entity_type, request_id, key, item)
        self._known.add((entity_type.name, key))
        return _json_answer(HTTPStatus.OK, response, "stored")

    def clear(self) -> None:
        self._known.clear()
        for collection in ("accepted_requests", *(t.endpoint for t in ENTITY_TYPES)):
            self._database[collection].delete_many({})

    def counts(self) -> dict[str, int]:
        return {
            entity_type.name: self._database[entity_type.endpoint].count_documents({})
            for entity_type in ENTITY_TYPES
        }

    def _missing_parent(self, entity_type: EntityType, item: Document) -> str | None:
        for parent in entity_type.parents:
            key = item.get(parent.field)
            if key is not None and not self._exists(parent.entity_type, key):
                return f"{parent.entity_type} {key}"
        return None

    def _exists(self, entity_name: str, key: Any) -> bool:
        if not isinstance(key, str):
            return False
        if (entity_name, key) in self._known:
            return True
        (endpoint,) = (t.endpoint for t in ENTITY_TYPES if t.name == entity_name)
        if self._database[endpoint].find_one({"_id": key}, {"_id": True}) is None:
            return False
        self._known.add((entity_name, key))
        return True


class _Refused(Exception):
    """A request that ends before it is looked at as an upsert."""

    def __init__(self, answer: Answer) -> None:
        super().__init__(answer.outcome)
        self.answer = answer


class LocalHub:
    """The hub as a server on 127.0.0.1, on threads of this process, while it is entered.

    Port 0 takes a free one. `latency_ms` is added to each upsert.
    """

    def __init__(
        self,
        *,
        token: SecretStr,
        database: Database[Document],
        port: int = 0,
        faults: Sequence[Fault] = (),
        latency_ms: int = 0,
    ) -> None:
        self._token = token
        self._latency_seconds = latency_ms / 1000
        self._store = HubStore(database)
        self.observations = Observations(faults)
        try:
            self._server = _Server((LOCALHOST, port), _Handler)
        except OSError as error:
            raise StartFailed(
                f"The hub can't listen on {LOCALHOST}:{port}: {error.strerror}."
            ) from None
        self._server.hub = self

    @property
    def base_url(self) -> str:
        return f"http://{LOCALHOST}:{self._server.server_address[1]}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, name="local-hub", daemon=True).start()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._server.shutdown()
        self._server.server_close()

    def upsert(self, entity_type: EntityType, authorization: str | None, content: bytes) -> Answer:
        """Answer one upsert request."""
        body = _parsed(content)
        item = body.get(entity_type.name)
        key = item.get(entity_type.natural_key) if isinstance(item, dict) else None
        with self.observations.request(
            entity_type.name, _text(key), _text(body.get("request_id"))
        ) as seen:
            answer = self._answer(seen, entity_type, authorization, body)
            seen.answered_at, seen.status = time.time(), answer.status
            seen.outcome = answer.outcome
            return answer

    def control(self, method: str, path: str, content: bytes) -> Answer:
        """Answer at the door through which tests look and steer."""
        match method, path:
            case "GET", "/_hub/requests":
                return _json_answer(HTTPStatus.OK, self.observations.requests(), "ok")
            case "GET", "/_hub/stats":
                stats = {**self.observations.stats(), "stored": self._store.counts()}
                return _json_answer(HTTPStatus.OK, stats, "ok")
            case "PUT", "/_hub/faults":
                return self._replace_faults(content)
            case "POST", "/_hub/reset":
                self.observations.forget()
                self._store.clear()
                return _json_answer(HTTPStatus.OK, {"ok": True}, "ok")
            case _:
                return _refusal(HTTPStatus.NOT_FOUND, NOT_FOUND, "no such endpoint")

    def _answer(
        self, seen: SeenRequest, entity_type: EntityType, authorization: str | None, body: Document
    ) -> Answer:
        time.sleep(self._latency_seconds)
        fault = self.observations.fault_for(seen)
        if fault is None:
            return self._usual_answer(entity_type, authorization, body)
        time.sleep(fault.delay_ms / 1000)
        answer = self._told_answer(fault, entity_type, authorization, body)
        return replace(answer, drip_seconds=fault.drip_ms / 1000)

    def _told_answer(
        self, fault: Fault, entity_type: EntityType, authorization: str | None, body: Document
    ) -> Answer:
        if fault.only_delays:
            return self._usual_answer(entity_type, authorization, body)
        if fault.after_store:
            self._usual_answer(entity_type, authorization, body)
        return _faulty_answer(fault)

    def _usual_answer(
        self, entity_type: EntityType, authorization: str | None, body: Document
    ) -> Answer:
        try:
            self._authorize(authorization)
            request_id, key, item = _validated(entity_type, body)
        except _Refused as refused:
            return refused.answer
        return self._store.upsert(entity_type, request_id, key, item)

    def _authorize(self, authorization: str | None) -> None:
        if not authorization:
            raise _Refused(_refusal(HTTPStatus.UNAUTHORIZED, MISSING_AUTH, "no bearer token"))
        expected = f"Bearer {self._token.get_secret_value()}"
        if not hmac.compare_digest(authorization.encode(), expected.encode()):
            raise _Refused(_refusal(HTTPStatus.UNAUTHORIZED, INVALID_TOKEN, "wrong bearer token"))

    def _replace_faults(self, content: bytes) -> Answer:
        try:
            self.observations.faults = Faults.validate_json(content)
        except ValidationError as error:
            return _refusal(HTTPStatus.BAD_REQUEST, VALIDATION_ERROR, str(error))
        return _json_answer(HTTPStatus.OK, {"ok": True}, "ok")


def upsert_path(entity_type: EntityType) -> str:
    """Return the path of the seed's lambda URLs."""
    endpoint = entity_type.endpoint
    return f"/lambda-url/{endpoint}-upsert/admin/{endpoint}/upsert"


def upsert_urls(base_url: str) -> dict[str, str]:
    """Return the `ADMIN_*_UPSERT_URL` variables that name a hub."""
    return {
        entity_type.url_variable: base_url + upsert_path(entity_type)
        for entity_type in ENTITY_TYPES
    }


_ENTITY_TYPE_BY_PATH: Final = {
    upsert_path(entity_type): entity_type for entity_type in ENTITY_TYPES
}


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128
    hub: LocalHub


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1
    server: _Server

    def do_GET(self) -> None:
        self._respond()

    def do_POST(self) -> None:
        self._respond()

    def do_PUT(self) -> None:
        self._respond()

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class's name
        pass

    def _respond(self) -> None:
        content = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        hub = self.server.hub
        entity_type = _ENTITY_TYPE_BY_PATH.get(self.path)
        if self.command == "POST" and entity_type is not None:
            answer = hub.upsert(entity_type, self.headers.get("Authorization"), content)
        else:
            answer = hub.control(self.command, self.path, content)
        self._send(answer)

    def _send(self, answer: Answer) -> None:
        usual = self.wfile
        if answer.drip_seconds:
            self.wfile = _Dripping(usual, answer.drip_seconds)
        try:
            if answer.status is None:
                self._send_raw(answer.content)
            else:
                self._send_response(answer.status, answer)
        except OSError:  # the client has had enough
            self.close_connection = True
        finally:
            self.wfile = usual

    def _send_raw(self, content: bytes) -> None:
        self.close_connection = True
        self.wfile.write(content)
        self.wfile.flush()
        self.connection.shutdown(socket.SHUT_RDWR)

    def _send_response(self, status: int, answer: Answer) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(answer.content) + answer.padding))
        if answer.retry_after is not None:
            self.send_header("Retry-After", answer.retry_after)
        self.end_headers()
        self.wfile.write(answer.content)
        for sent in range(0, answer.padding, _PADDING_PART):
            self.wfile.write(b" " * min(_PADDING_PART, answer.padding - sent))


class _Dripping(io.BufferedIOBase):
    """Passes on each byte of an answer by itself."""

    def __init__(self, target: io.BufferedIOBase, pause_seconds: float) -> None:
        self._target = target
        self._pause_seconds = pause_seconds

    def write(self, content: Any) -> int:
        for byte in content:
            self._target.write(bytes([byte]))
            self._target.flush()
            time.sleep(self._pause_seconds)
        return len(content)


def _faulty_answer(fault: Fault) -> Answer:
    status = fault.status or HTTPStatus.OK
    if fault.drop:
        return Answer(None, outcome="dropped")
    if fault.raw is not None:
        return Answer(None, fault.raw.encode("latin-1"), "raw")
    if fault.garbage:
        return Answer(status, _GARBAGE, "garbage", fault.retry_after)
    if fault.body_bytes is not None:
        success = _json_answer(status, {"ok": True}, "padded", fault.retry_after)
        return replace(success, padding=max(0, fault.body_bytes - len(success.content)))
    if fault.body is not None:
        return _json_answer(status, fault.body, "fault", fault.retry_after)
    error: Document = {"code": fault.code, "message": fault.message, "details": {}}
    body = {"ok": False, "error": error} if fault.code else {"ok": False}
    return _json_answer(status, body, fault.code or "fault", fault.retry_after)


def _parsed(content: bytes) -> Document:
    try:
        body = json.loads(content)
    except (ValueError, RecursionError):
        return {}
    return body if isinstance(body, dict) else {}


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _validated(entity_type: EntityType, body: Document) -> tuple[str, str, Document]:
    request_id, item = body.get("request_id"), body.get(entity_type.name)
    key = item.get(entity_type.natural_key) if isinstance(item, dict) else None
    if (
        set(body) == {"request_id", entity_type.name}
        and isinstance(request_id, str)
        and _REQUEST_ID.fullmatch(request_id)
        and isinstance(item, dict)
        and isinstance(key, str)
        and key
    ):
        return request_id, key, item
    expected = (
        f"request_id (32 hex digits) and {entity_type.name} with its {entity_type.natural_key}"
    )
    raise _Refused(_refusal(HTTPStatus.BAD_REQUEST, VALIDATION_ERROR, f"expected {expected}"))


@contextmanager
def _served(arguments: argparse.Namespace) -> Iterator[str]:
    token = os.environ.get("ADMIN_SYNC_TOKEN")
    if not token:
        raise StartFailed("Set ADMIN_SYNC_TOKEN to the token that the hub shall ask for.")
    if not arguments.mongodb_uri:
        raise StartFailed("Set MONGODB_URI, or give --mongodb-uri.")
    client: MongoClient[Document] = MongoClient(
        arguments.mongodb_uri, serverSelectionTimeoutMS=10_000
    )
    try:
        client.admin.command("ping")
    except PyMongoError as error:
        raise StartFailed(f"MongoDB does not answer ({type(error).__name__}).") from None
    faults = Faults.validate_json(arguments.faults.read_bytes()) if arguments.faults else ()
    with LocalHub(
        token=SecretStr(token),
        database=client[arguments.db],
        port=arguments.port,
        faults=faults,
        latency_ms=arguments.latency_ms,
    ) as hub:
        yield f"local hub: {hub.base_url}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=0, help="default: a free one")
    parser.add_argument(
        "--mongodb-uri", default=os.environ.get("MONGODB_URI"), help="default: MONGODB_URI"
    )
    parser.add_argument("--db", default="local_hub", help="database name; default: %(default)s")
    parser.add_argument("--faults", type=Path, help="JSON file with a list of faults")
    parser.add_argument("--latency-ms", type=int, default=0, help="added to each upsert")
    return serve_until_stopped(_served(parser.parse_args()))


if __name__ == "__main__":
    sys.exit(main())
