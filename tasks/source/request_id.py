"""The deterministic request id: the same item at the same version is always the same request."""

import hashlib
import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

_REQUEST_ID_LENGTH = 32
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def request_id(entity_type: str, natural_key: str, version: int | str) -> str:
    """Return `sha256("<entity type>|<natural key>|<version>")`, its first 32 hex digits.

    Source of the formula: "Request ID Determinístico" of the seed document, UTF-8.
    """
    identity = f"{entity_type}|{natural_key}|{version}"
    return hashlib.sha256(identity.encode()).hexdigest()[:_REQUEST_ID_LENGTH]


def effective_version(
    version: int | None, updated_at: datetime | None, business_fields: Mapping[str, Any]
) -> int | str:
    """Return the version that a request id is made of.

    `version` itself; without it the epoch milliseconds of `updated_at` (naive times are UTC);
    without that the SHA-256 of the business fields as canonical JSON.
    """
    if version is not None:
        return version
    if updated_at is not None:
        return _epoch_milliseconds(updated_at)
    canonical = json.dumps(
        business_fields, sort_keys=True, separators=(",", ":"), ensure_ascii=False
    )
    return hashlib.sha256(canonical.encode()).hexdigest()


def _epoch_milliseconds(moment: datetime) -> int:
    aware = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    since_epoch = aware - _EPOCH
    return (
        since_epoch.days * 86_400_000
        + since_epoch.seconds * 1000
        + since_epoch.microseconds // 1000
    )
