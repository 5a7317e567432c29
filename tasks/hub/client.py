"""HubAdminClient: one upsert is one HTTP request to Stage 1 is one UpsertOutcome."""

import json
import re
import ssl
import time
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import cached_property, lru_cache
from typing import Any, Final, cast
from urllib.parse import quote
from urllib.request import getproxies, proxy_bypass

import httpx

from tasks.entities import ENTITY_TYPES, EntityType
from tasks.errors import (
    CLASS_BY_CODE,
    CONNECTION_ERROR,
    HTTP_OK,
    TIMEOUT,
    UNEXPECTED_RESPONSE,
    ErrorClass,
    ItemError,
    classify,
)
from tasks.hub.deadline import PunctualTransport
from tasks.settings import Settings

_LONGEST_BODY: Final = 1 << 20
_LONGEST_TEXT: Final = 500
_LONGEST_PAUSE_SECONDS: Final = 365 * 86_400.0
_REDACTED: Final = "[redacted]"


@dataclass(frozen=True)
class UpsertOutcome:
    """What one request came to: no `error` means that Stage 1 confirmed the item.

    `http_status` is None where no response came. `retry_after_seconds` is what Stage 1 asked for.
    """

    error: ItemError | None
    http_status: int | None
    sync_id: str | None
    duration_ms: float
    retry_after_seconds: float | None = None


@dataclass(frozen=True)
class _Endpoint:
    """Where and how items of one type are sent; without `proxy` they go straight there."""

    url: httpx.URL
    headers: tuple[tuple[str, str], ...]
    proxy: str | None


class HubAdminClient:
    """Sends upserts to Stage 1; each request has a connection to itself while it runs.

    An upsert is nothing but a POST and its answer, so it goes to httpx's transport: what
    `httpx.Client` does beyond that (redirects, cookies, netrc, decoding) is not wanted here, and
    would cost two fifths of the CPU time of a request.

    What Stage 1 answers is not trusted: a request is over when its time is, a body is read up to
    1 MiB, and a text is taken over without the token and control characters, up to 500 characters.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._token = settings.token.get_secret_value()
        self._token_spellings = _spellings(self._token)
        self._endpoints = {
            entity_type.name: self._endpoint(settings.upsert_url(entity_type))
            for entity_type in ENTITY_TYPES
        }
        self._idle: dict[str | None, deque[PunctualTransport]] = {
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
        started = time.perf_counter()
        try:
            response, received = self._post(self._endpoints[entity_type.name], content)
        except httpx.TimeoutException:
            limit = f"no answer within {self._settings.timeout_ms} ms"
            return self._no_answer(TIMEOUT, limit, started)
        except httpx.TransportError as error:
            return self._no_answer(CONNECTION_ERROR, str(error) or type(error).__name__, started)
        return self._outcome(response, received, _milliseconds_since(started))

    def close(self) -> None:
        """Close the connections that no request uses."""
        for idle in self._idle.values():
            while idle:
                idle.pop().close()

    def _endpoint(self, address: str) -> _Endpoint:
        url = httpx.URL(address)
        headers = (
            ("Host", url.netloc.decode("ascii")),
            ("Authorization", f"Bearer {self._token}"),
            ("Content-Type", "application/json"),
        )
        proxy = None if proxy_bypass(url.host) else getproxies().get(url.scheme)
        return _Endpoint(url, headers, proxy)

    @cached_property
    def _tls(self) -> ssl.SSLContext:
        is_needed = any(endpoint.url.scheme == "https" for endpoint in self._endpoints.values())
        # Loading the certificate authorities takes 30 ms; one without them trusts nobody.
        return (
            ssl.create_default_context() if is_needed else ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        )

    def _post(self, endpoint: _Endpoint, content: bytes) -> tuple[httpx.Response, bytearray]:
        request = httpx.Request(
            "POST",
            endpoint.url,
            headers=[*endpoint.headers, ("Content-Length", str(len(content)))],
            stream=httpx.ByteStream(content),
        )
        with self._transport(endpoint.proxy) as transport:
            response = transport.handle_request(request)
            try:
                return response, _start_of_body(cast(httpx.SyncByteStream, response.stream))
            finally:
                response.close()

    @contextmanager
    def _transport(self, proxy: str | None) -> Iterator[PunctualTransport]:
        # Not one for all threads: they would queue on the lock of its connection pool.
        idle = self._idle[proxy]
        try:
            transport = idle.pop()
        except IndexError:
            transport = PunctualTransport(self._settings.timeout_ms / 1000, self._tls, proxy)
        try:
            yield transport
        finally:
            idle.append(transport)

    def _no_answer(self, code: str, message: str, started: float) -> UpsertOutcome:
        error = ItemError(code, self._clean(message), CLASS_BY_CODE[code])
        return UpsertOutcome(error, None, None, _milliseconds_since(started))

    def _outcome(
        self, response: httpx.Response, received: bytearray, duration_ms: float
    ) -> UpsertOutcome:
        answer = _json_object(received)
        if response.status_code == HTTP_OK and answer.get("ok") is True:
            sync_id = self._clean(answer.get("sync_id")) or None
            return UpsertOutcome(None, HTTP_OK, sync_id, duration_ms)
        retry_after = response.headers.get("Retry-After")
        refusal = _refusal(answer)
        body_code = refusal.get("code")
        code, error_class = classify(
            response.status_code,
            body_code if isinstance(body_code, str) else None,
            has_retry_after=retry_after is not None,
        )
        message = self._clean(refusal.get("message")) or _what_is_wrong(response, received, answer)
        return UpsertOutcome(
            ItemError(self._clean(code) or UNEXPECTED_RESPONSE, message, error_class),
            response.status_code,
            None,
            duration_ms,
            retry_after_seconds(retry_after) if error_class is ErrorClass.TRANSIENT else None,
        )

    def _clean(self, given: Any) -> str:
        if not isinstance(given, str):
            return ""
        text = given
        for spelling in self._token_spellings:
            text = text.replace(spelling, _REDACTED)
        text = text[:_LONGEST_TEXT]
        if not text.isprintable():
            text = "".join(each if each.isprintable() else " " for each in text)
        return text.strip()


@lru_cache(maxsize=8)
def hub_admin_client(settings: Settings) -> HubAdminClient:
    """Return this process's client of the Stage 1 that the settings name."""
    return HubAdminClient(settings)


def retry_after_seconds(header: str | None, now: datetime | None = None) -> float | None:
    """Read a `Retry-After` header, seconds or an HTTP date (RFC 9110, section 10.2.3).

    Returns seconds from `now`, at least 0 and at most a year; 0 for a header that can't be read,
    None for none.
    """
    if header is None:
        return None
    text = header.strip()
    if text.isascii() and text.isdecimal():
        seconds = float(text)
    else:
        seconds = _seconds_until(text, now or datetime.now(UTC))
    return min(max(0.0, seconds), _LONGEST_PAUSE_SECONDS)


def _seconds_until(http_date: str, now: datetime) -> float:
    try:
        moment = parsedate_to_datetime(http_date)
    except (ValueError, OverflowError):
        return 0.0
    aware = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return (aware - now).total_seconds()


def _spellings(token: str) -> tuple[str, ...]:
    """Return the token as it is, and as JSON, Python and URLs write it."""
    in_json = json.dumps(token)[1:-1]
    in_url = quote(token, safe="")
    with_lower_hex = re.sub("%..", lambda escape: escape[0].lower(), in_url)
    in_python = repr(token.encode())[2:-1]
    spellings = (token, in_json, in_json.replace("/", r"\/"), in_python, in_url, with_lower_hex)
    return tuple(dict.fromkeys(spellings))


def _start_of_body(parts: Iterable[bytes]) -> bytearray:
    """Read a body to its end, or a bit beyond the limit if it is longer."""
    received = bytearray()
    for part in parts:
        received += part
        if len(received) > _LONGEST_BODY:
            break
    return received


def _json_object(received: bytearray) -> dict[str, Any]:
    if len(received) > _LONGEST_BODY:
        return {}
    try:
        answer = json.loads(received)
    except (ValueError, RecursionError):
        return {}
    return answer if isinstance(answer, dict) else {}


def _refusal(answer: dict[str, Any]) -> dict[str, Any]:
    error = answer.get("error")
    return error if answer.get("ok") is False and isinstance(error, dict) else {}


def _what_is_wrong(response: httpx.Response, received: bytearray, answer: dict[str, Any]) -> str:
    if answer:
        return f"HTTP {response.status_code} without an error message"
    if len(received) > _LONGEST_BODY:
        return f"HTTP {response.status_code} with a body over 1 MiB"
    return f"HTTP {response.status_code} with a body that is no JSON object"


def _milliseconds_since(started: float) -> float:
    return round((time.perf_counter() - started) * 1000, 3)
