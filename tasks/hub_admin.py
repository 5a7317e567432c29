"""HubAdminClient: one upsert is one HTTP request to Stage 1 is one UpsertOutcome."""

import json
import ssl
import threading
import time
from collections.abc import Generator
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Final

import httpx

from tasks.entities import EntityType
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
from tasks.settings import Settings

_TEXT_LENGTH: Final = 500
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


class _BearerToken(httpx.Auth):
    """Sends the token, whatever the URL or the machine's netrc says."""

    def __init__(self, token: str) -> None:
        self._header = f"Bearer {token}"

    def auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        request.headers["Authorization"] = self._header
        yield request


class HubAdminClient:
    """Sends upserts to Stage 1; each thread has its own connection, all share one TLS context."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._token = settings.token.get_secret_value()
        self._tls = ssl.create_default_context()
        self._per_thread = threading.local()
        self._clients: list[httpx.Client] = []
        self._clients_lock = threading.Lock()

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
            response = self._client().post(self._settings.upsert_url(entity_type), content=content)
        except httpx.TimeoutException:
            limit = f"no answer within {self._settings.timeout_ms} ms"
            return self._no_answer(TIMEOUT, limit, started)
        except httpx.TransportError as error:
            return self._no_answer(CONNECTION_ERROR, str(error) or type(error).__name__, started)
        except httpx.RequestError as error:
            return self._no_answer(UNEXPECTED_RESPONSE, type(error).__name__, started)
        return self._outcome(response, _milliseconds_since(started))

    def close(self) -> None:
        """Close the connections of all threads."""
        with self._clients_lock:
            for client in self._clients:
                client.close()
            self._clients.clear()

    def _client(self) -> httpx.Client:
        client: httpx.Client | None = getattr(self._per_thread, "client", None)
        if client is None:
            client = httpx.Client(
                auth=_BearerToken(self._token),
                headers={"Content-Type": "application/json", "Accept": "application/json"},
                timeout=self._settings.timeout_ms / 1000,
                verify=self._tls,
                follow_redirects=False,
            )
            self._per_thread.client = client
            with self._clients_lock:
                self._clients.append(client)
        return client

    def _no_answer(self, code: str, message: str, started: float) -> UpsertOutcome:
        error = ItemError(code, self._clean(message), CLASS_BY_CODE[code])
        return UpsertOutcome(error, None, None, _milliseconds_since(started))

    def _outcome(self, response: httpx.Response, duration_ms: float) -> UpsertOutcome:
        answer = _json_object(response.content)
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
        message = self._clean(refusal.get("message")) or _without_message(response, answer)
        return UpsertOutcome(
            ItemError(self._clean(code) or UNEXPECTED_RESPONSE, message, error_class),
            response.status_code,
            None,
            duration_ms,
            retry_after_seconds(retry_after) if error_class is ErrorClass.TRANSIENT else None,
        )

    def _clean(self, text: Any) -> str:
        if not isinstance(text, str):
            return ""
        printable = "".join(
            character if character.isprintable() else " "
            for character in text.replace(self._token, _REDACTED)
        )
        return printable[:_TEXT_LENGTH]


def retry_after_seconds(header: str | None, now: datetime | None = None) -> float | None:
    """Read a `Retry-After` header, seconds or an HTTP date (RFC 9110, section 10.2.3).

    Returns seconds from `now`, never negative; 0 for a header that can't be read, None for none.
    """
    if header is None:
        return None
    if header.strip().isdecimal():
        return float(header)
    try:
        moment = parsedate_to_datetime(header)
    except ValueError:
        return 0.0
    aware = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return max(0.0, (aware - (now or datetime.now(UTC))).total_seconds())


def _json_object(content: bytes) -> dict[str, Any]:
    try:
        answer = json.loads(content)
    except (ValueError, RecursionError):
        return {}
    return answer if isinstance(answer, dict) else {}


def _refusal(answer: dict[str, Any]) -> dict[str, Any]:
    error = answer.get("error")
    return error if answer.get("ok") is False and isinstance(error, dict) else {}


def _without_message(response: httpx.Response, answer: dict[str, Any]) -> str:
    if answer:
        return f"HTTP {response.status_code} without an error message"
    return f"HTTP {response.status_code} with a body that is no JSON object"


def _milliseconds_since(started: float) -> float:
    return round((time.perf_counter() - started) * 1000, 3)
