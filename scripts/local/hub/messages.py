"""The upserts that come to the hub, and its answers."""

import json
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Final, Literal, Self

from tasks.entities import EntityType

Document = dict[str, Any]

Compression = Literal["gzip", "deflate"]

_WINDOW_BITS: Final[dict[Compression, int]] = {
    "gzip": 16 + zlib.MAX_WBITS,
    "deflate": zlib.MAX_WBITS,
}
_PADDING_PART: Final = 65_536
_REQUEST_ID: Final = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True)
class Upsert:
    """The body of an upsert request, valid or not."""

    entity_type: EntityType
    body: Document

    @property
    def item(self) -> Document:
        item = self.body.get(self.entity_type.name)
        return item if isinstance(item, dict) else {}

    @property
    def key(self) -> str | None:
        return _text(self.item.get(self.entity_type.natural_key))

    @property
    def request_id(self) -> str | None:
        return _text(self.body.get("request_id"))

    @property
    def is_valid(self) -> bool:
        has_request_id = bool(_REQUEST_ID.fullmatch(self.request_id or ""))
        has_these_only = set(self.body) == {"request_id", self.entity_type.name}
        return has_request_id and has_these_only and bool(self.key)


@dataclass(frozen=True)
class Answer:
    """An HTTP response; without a status its content is all that is sent, and the last."""

    status: int | None
    content: bytes = b""
    outcome: str = "ok"
    headers: tuple[tuple[str, str], ...] = ()
    padding: int = 0
    """Number of spaces after the content."""
    drip_seconds: float = 0
    """Pause after each byte."""
    closes: bool = False
    """Whether the connection ends after it; no header says so."""

    def body(self) -> Iterator[bytes]:
        """Yield the content and its padding, which may be long, in several parts."""
        yield self.content
        for sent in range(0, self.padding, _PADDING_PART):
            yield b" " * min(_PADDING_PART, self.padding - sent)

    def compressed(self, compression: Compression) -> Self:
        """Return the answer with its body compressed, a part of it at a time."""
        compressor = zlib.compressobj(wbits=_WINDOW_BITS[compression])
        parts = [compressor.compress(part) for part in self.body()]
        content = b"".join([*parts, compressor.flush()])
        headers = (*self.headers, ("Content-Encoding", compression))
        return replace(self, content=content, padding=0, headers=headers)


def json_object(content: bytes) -> Document:
    """Return the JSON object, an empty one where the content is none."""
    try:
        body = json.loads(content)
    except (ValueError, RecursionError):
        return {}
    return body if isinstance(body, dict) else {}


def json_answer(status: int, body: Any, outcome: str = "ok") -> Answer:
    return Answer(status, json.dumps(body).encode(), outcome)


def refusal(status: int, code: str, message: str) -> Answer:
    error = {"code": code, "message": message, "details": {}}
    return json_answer(status, {"ok": False, "error": error}, code)


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None
