"""Request: under which id an item goes to Stage 1, and whether Stage 1 takes it for a repeat.

Stage 1 answers a repeated request id as it answered the first, and changes nothing. Source:
"Request" of the Stage 1 contract.
"""

from dataclasses import dataclass

from tasks.errors import VERSION_NOT_RAISED, VERSION_REUSED, ErrorClass, ItemError
from tasks.source.item import Item
from tasks.source.request_id import content_version, request_id
from tasks.trail.items import UNKNOWN_DIGEST, ItemRecord, Sent, SettledItem


@dataclass(frozen=True)
class Request:
    """An item as it goes to Stage 1."""

    item: Item
    request_id: str
    version: int | str
    is_new: bool = True
    """Whether Stage 1 has never got this id, as far as is known."""
    is_in: bool = False
    """Whether Stage 1 has confirmed this very request, and has got nothing else since."""
    repeat: ItemError | None = None
    """Why the item is not in, even though Stage 1 says so; None where its word counts."""
    is_uncertain: bool = False
    """Whether it can't be told which of two contents Stage 1 gets under this id: it may be the
    first, and may have got another one before."""

    @property
    def sent_digest(self) -> str:
        """Return the digest of what Stage 1 then has under this id."""
        return UNKNOWN_DIGEST if self.is_uncertain else self.item.digest


def request_of(item: Item, known: ItemRecord | None) -> Request:
    """Return the request of an item, of which `known` is on record."""
    latest = known.latest if known else None
    version = _version(item, latest)
    if known is None or latest is None:
        return Request(item, _request_id(item, version), version)
    identifier = _request_id(item, version)
    if item.version is None and latest.digest == item.digest:
        identifier, version = latest.request_id, latest.version
    has_content = latest.digest == item.digest
    is_doubtful = bool(known.in_doubt)
    is_confirmed = identifier in known.confirmed_ids
    if identifier == latest.request_id:
        return Request(
            item,
            identifier,
            version,
            is_new=False,
            is_in=has_content and not is_doubtful,
            repeat=None if has_content else _not_raised(latest, is_doubtful=is_doubtful),
            is_uncertain=not (has_content or is_confirmed or latest.digest == UNKNOWN_DIGEST),
        )
    is_new = identifier not in known.used_ids
    is_harmless = is_new or (has_content and not is_doubtful)
    return Request(
        item,
        identifier,
        version,
        is_new=is_new,
        repeat=None
        if is_harmless
        else _reused(version, latest, is_confirmed=is_confirmed, is_doubtful=is_doubtful),
        is_uncertain=not (is_harmless or is_confirmed),
    )


def is_held(item: Item, settled: SettledItem) -> bool:
    """Return whether an item is as Stage 1 holds it."""
    if item.source_id != settled.source_id or item.digest != settled.digest:
        return False
    return item.version is None or _request_id(item, item.version) == settled.request_id


def _version(item: Item, latest: Sent | None) -> int | str:
    if item.version is not None:
        return item.version
    return content_version(item.digest, latest.request_id if latest else None)


def _request_id(item: Item, version: int | str) -> str:
    return request_id(item.entity_type.name, item.natural_key, version)


def _not_raised(latest: Sent, *, is_doubtful: bool) -> ItemError:
    may = "may have" if is_doubtful else "has"
    return ItemError(
        VERSION_NOT_RAISED,
        f"Stage 1 {may} other content as version {latest.version}, since {_when(latest)}, "
        "and takes this for a repeat: raise the version (or updated_at) of the document",
        ErrorClass.PERMANENT,
    )


def _reused(
    version: int | str, latest: Sent, *, is_confirmed: bool, is_doubtful: bool
) -> ItemError:
    had = "had" if is_confirmed else "may have had"
    may = "may have got" if is_doubtful else "has got"
    return ItemError(
        VERSION_REUSED,
        f"Stage 1 {had} version {version} before, {may} version {latest.version} since "
        f"{_when(latest)}, and takes this for a repeat: "
        f"raise the version (or updated_at) of the document above {latest.version}",
        ErrorClass.PERMANENT,
    )


def _when(sent: Sent) -> str:
    return f"{sent.at:%Y-%m-%d %H:%M:%S} UTC (run {sent.run_id})"
