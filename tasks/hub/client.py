"""HubAdminClient: one upsert is one HTTP request to Stage 1 is one UpsertOutcome."""

import json
import ssl
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property, lru_cache
from typing import Any, Final

import httpcore

from tasks.entities import ENTITY_TYPES, EntityType
from tasks.errors import CLASS_BY_CODE, CONNECTION_ERROR, TIMEOUT, ItemError
from tasks.hub.answer import Answer, UpsertOutcome, answer_from, outcome_of
from tasks.hub.connection_fault import fault_of
from tasks.hub.deadline import RESENT, DeadlinePool
from tasks.hub.endpoint import Endpoint, endpoint_of, proxy_at
from tasks.redaction import Redaction
from tasks.settings import Settings

_NO_ANSWER: Final = (
    httpcore.NetworkError,
    httpcore.ProtocolError,
    httpcore.ProxyError,
    httpcore.UnsupportedProtocol,
)


class HubAdminClient:
    """Sends upserts to Stage 1; each request has a connection to itself while it runs.

    An upsert is a POST and its answer, so httpcore does: redirects, cookies and netrc are not
    wanted, and httpx's client would take two fifths of the CPU time of a request.

    The client doesn't trust Stage 1: a request ends by its deadline, a body is read up to 1 MiB,
    and a text is kept without the token and control characters, up to 500 characters.
    """

    def __init__(self, settings: Settings) -> None:
        self._timeout_ms = settings.timeout_ms
        self._ca_file = settings.ca_file
        self._redaction = Redaction([settings.token.get_secret_value()])
        self._endpoints = {
            entity_type.name: endpoint_of(settings, entity_type) for entity_type in ENTITY_TYPES
        }
        self._answered: set[str] = set()
        self._idle: dict[str | None, deque[DeadlinePool]] = {
            endpoint.proxy: deque() for endpoint in self._endpoints.values()
        }

    def upsert(
        self, entity_type: EntityType, request_id: str, body: dict[str, Any]
    ) -> UpsertOutcome:
        """Send one item, once. Whatever happens on the way becomes the outcome.

        Raises:
            ValueError: the body has no JSON form; nothing was sent.
        """
        content = json.dumps(
            {"request_id": request_id, entity_type.name: body},
            ensure_ascii=False,
            allow_nan=False,
            separators=(",", ":"),
        ).encode()
        endpoint = self._endpoints[entity_type.name]
        started = time.perf_counter()
        try:
            answer, was_resent = self._post(endpoint, content)
        except httpcore.TimeoutException:
            limit = f"no answer within {self._timeout_ms} ms"
            return self._no_answer(TIMEOUT, limit, started)
        except _NO_ANSWER as error:
            fault = fault_of(error, endpoint, has_answered=entity_type.name in self._answered)
            return self._no_answer(CONNECTION_ERROR, fault, started)
        self._answered.add(entity_type.name)
        outcome = outcome_of(answer, _milliseconds_since(started), self._redaction)
        return replace(outcome, was_resent=True) if was_resent else outcome

    def close(self) -> None:
        """Close the connections that no request uses."""
        for idle in self._idle.values():
            while idle:
                idle.pop().close()

    @cached_property
    def _tls(self) -> ssl.SSLContext:
        if any(endpoint.url.scheme == b"https" for endpoint in self._endpoints.values()):
            context = ssl.create_default_context()
            if self._ca_file is not None:
                context.load_verify_locations(self._ca_file)
            return context
        # Loading the certificate authorities takes 30 ms; a context without them trusts nobody.
        return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)

    def _post(self, endpoint: Endpoint, content: bytes) -> tuple[Answer, bool]:
        """Return the answer, and whether the request was sent again for it."""
        with (
            self._pool(endpoint.proxy) as pool,
            pool.stream("POST", endpoint.url, headers=endpoint.headers, content=content) as answer,
        ):
            parts = answer.iter_stream()
            return answer_from(answer.status, answer.headers, parts), RESENT in answer.extensions

    @contextmanager
    def _pool(self, proxy: str | None) -> Iterator[DeadlinePool]:
        # Not one for all threads: they would queue on its lock.
        idle = self._idle[proxy]
        try:
            pool = idle.pop()
        except IndexError:
            pool = DeadlinePool(
                self._timeout_ms / 1000, self._tls, proxy_at(proxy) if proxy else None
            )
        try:
            yield pool
        finally:
            idle.append(pool)

    def _no_answer(self, code: str, message: str, started: float) -> UpsertOutcome:
        error = ItemError(code, self._redaction.cleaned(message), CLASS_BY_CODE[code])
        return UpsertOutcome(error, None, None, _milliseconds_since(started))


@lru_cache(maxsize=8)
def hub_admin_client(settings: Settings) -> HubAdminClient:
    """Return this process's client of the Stage 1 that the settings name."""
    return HubAdminClient(settings)


def _milliseconds_since(started: float) -> float:
    return round((time.perf_counter() - started) * 1000, 3)
