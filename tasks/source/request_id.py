"""The deterministic request id: the same item at the same version is always the same request."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any, Final

_REQUEST_ID_LENGTH: Final = 32
_canonical: Final = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def request_id(entity_type: str, natural_key: str, version: int | str) -> str:
    """Return `sha256("<entity type>|<natural key>|<version>")`, its first 32 hex digits.

    Source of the formula: "Request ID Determinístico" of the seed document, UTF-8.
    """
    identity = f"{entity_type}|{natural_key}|{version}"
    return hashlib.sha256(identity.encode()).hexdigest()[:_REQUEST_ID_LENGTH]


def digest_of(body: Mapping[str, Any]) -> str:
    """Return the SHA-256 of a body as canonical JSON, in 64 hex digits."""
    return hashlib.sha256(_canonical.encode(body).encode()).hexdigest()


def content_version(digest: str, last_request_id: str | None) -> str:
    """Return the version of content that has neither version nor time.

    It is the digest of the content, chained to the request id under which Stage 1 got other
    content last: so content that comes back is a new request. Source: "Request" of the contract.
    """
    if last_request_id is None:
        return digest
    return hashlib.sha256(f"{digest}|{last_request_id}".encode()).hexdigest()
