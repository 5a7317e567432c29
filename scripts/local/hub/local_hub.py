"""The hub itself: what it answers to upserts, and to the tests that observe and control it."""

import hmac
import threading
import time
from dataclasses import asdict
from functools import partial
from http import HTTPStatus
from typing import Final, Self

from pydantic import SecretStr, ValidationError
from pymongo.database import Database

from scripts.local.hub.active_faults import NO_FAULTS, FaultSource, faults_from_json
from scripts.local.hub.messages import Answer, Document, Upsert, json_answer, json_object, refusal
from scripts.local.hub.request_log import RequestLog, SeenRequest
from scripts.local.hub.server import HttpRequest, HttpServer
from scripts.local.hub.store import HubStore
from scripts.local.process import LOCALHOST, require_free
from tasks.entities import ENTITY_TYPES, EntityType
from tasks.errors import INVALID_TOKEN, MISSING_AUTH, NOT_FOUND, VALIDATION_ERROR


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


ENTITY_TYPE_BY_PATH: Final = {upsert_path(entity_type): entity_type for entity_type in ENTITY_TYPES}
_LONGEST_STOP_SECONDS: Final = 0.05


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
        faults: FaultSource = NO_FAULTS,
        latency_ms: int = 0,
    ) -> None:
        self._token = token
        self._store = HubStore(database)
        self._port = port
        self._latency_seconds = latency_ms / 1000
        self.faults = faults
        self.log = RequestLog()

    @property
    def base_url(self) -> str:
        return f"http://{LOCALHOST}:{self._port}"

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Listen; after a stop on the same port, and with all that the hub remembers.

        Raises:
            StartFailed: the port is taken.
        """
        require_free(self._port, name="The hub")
        self._server = HttpServer((LOCALHOST, self._port), self._respond)
        self._port = self._server.server_port
        serve = partial(self._server.serve_forever, poll_interval=_LONGEST_STOP_SECONDS)
        threading.Thread(target=serve, name="local-hub", daemon=True).start()

    def stop(self) -> None:
        """Refuse connections, and cut those that are open."""
        self._server.stop()

    def reset(self) -> None:
        """Forget all requests and items, and misbehave no longer."""
        self.faults = NO_FAULTS
        self.log.clear()
        self._store.clear()

    def _respond(self, request: HttpRequest) -> Answer:
        match request.method, request.path:
            case "POST", path if path in ENTITY_TYPE_BY_PATH:
                return self._upsert(ENTITY_TYPE_BY_PATH[path], request)
            case "GET", "/_hub/requests":
                return json_answer(HTTPStatus.OK, [asdict(seen) for seen in self.log.requests()])
            case "GET", "/_hub/stats":
                stats = {**self.log.stats(), "stored": self._store.counts()}
                return json_answer(HTTPStatus.OK, stats)
            case "PUT", "/_hub/faults":
                return self._replace_faults(request.content)
            case "POST", "/_hub/reset":
                self.reset()
                return json_answer(HTTPStatus.OK, {"ok": True})
            case _:
                return refusal(HTTPStatus.NOT_FOUND, NOT_FOUND, "no such endpoint")

    def _replace_faults(self, content: bytes) -> Answer:
        try:
            self.faults = faults_from_json(content)
        except ValidationError as error:
            return refusal(HTTPStatus.BAD_REQUEST, VALIDATION_ERROR, str(error))
        return json_answer(HTTPStatus.OK, {"ok": True})

    def _upsert(self, entity_type: EntityType, request: HttpRequest) -> Answer:
        upsert = Upsert(entity_type, json_object(request.content))
        with self.log.record(upsert, request.content) as seen:
            answer = self._answer(seen, upsert, request.authorization)
            seen.answered_at, seen.status = time.time(), answer.status
            seen.outcome, seen.client_left = answer.outcome, request.client_left()
            return answer

    def _answer(self, seen: SeenRequest, upsert: Upsert, authorization: str | None) -> Answer:
        time.sleep(self._latency_seconds)
        fault = self.faults(seen)
        if fault is None:
            return self._usual_answer(upsert, authorization)
        time.sleep(fault.delay_ms / 1000)
        if (answer := fault.answer()) is None:
            answer = self._usual_answer(upsert, authorization)
        elif fault.after_store:
            self._usual_answer(upsert, authorization)
        return fault.sent(answer)

    def _usual_answer(self, upsert: Upsert, authorization: str | None) -> Answer:
        if not authorization:
            return refusal(HTTPStatus.UNAUTHORIZED, MISSING_AUTH, "no bearer token")
        expected = f"Bearer {self._token.get_secret_value()}"
        if not hmac.compare_digest(authorization.encode(), expected.encode()):
            return refusal(HTTPStatus.UNAUTHORIZED, INVALID_TOKEN, "wrong bearer token")
        if not upsert.is_valid:
            name, key = upsert.entity_type.name, upsert.entity_type.natural_key
            message = f"expected request_id (32 hex digits) and {name} with its {key}"
            return refusal(HTTPStatus.BAD_REQUEST, VALIDATION_ERROR, message)
        return self._store.upsert(upsert)
