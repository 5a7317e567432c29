"""The five entity types, one declaration each, in sync order."""

from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any, Final, Literal, get_args

from pydantic import AfterValidator, AnyUrl, BaseModel, ConfigDict, StringConstraints, TypeAdapter

_any_url: TypeAdapter[AnyUrl] = TypeAdapter(AnyUrl)


def _is_url(text: str) -> str:
    _any_url.validate_python(text)
    return text


Key = Annotated[str, StringConstraints(min_length=1)]
Url = Annotated[str, AfterValidator(_is_url)]
"""A URL that is checked, then sent as it was written."""


class _SourceItem(BaseModel):
    """Base of all items: unknown business fields pass through, values are not coerced."""

    model_config = ConfigDict(extra="allow", frozen=True, strict=True)


class Tenant(_SourceItem):
    id: Key
    name: Key
    enabled: bool = True
    password_check_url: Url | None = None
    password_check_endpoint: str | None = None
    user_migrated_endpoint: str | None = None
    slug: str | None = None
    logo: str | None = None
    allow_auto_link: bool | None = None


class Client(_SourceItem):
    id: Key
    name: Key
    enabled: bool = True
    redirect_uris: list[Url]
    pkce_required: bool | None = None


class Subtenant(_SourceItem):
    id: Key
    tenant_id: Key
    name: Key
    enabled: bool = True
    logo: str | None = None


class Domain(_SourceItem):
    host: Key
    tenant_id: Key
    enabled: bool = True
    default_subtenant_id: Key | None = None
    client_id: Key | None = None


class Branding(_SourceItem):
    id: Key
    scope: str | None = None
    tenant_id: Key | None = None
    subtenant_id: Key | None = None
    enabled: bool | None = None


@dataclass(frozen=True)
class Parent:
    """A reference: `field` of the item holds the natural key of an item of `entity_type`."""

    field: str
    entity_type: str


@dataclass(frozen=True)
class EntityType:
    """Where an entity type comes from, what it looks like and where it goes."""

    name: str
    collection: str
    natural_key: str
    endpoint: str
    model: type[BaseModel]
    parents: tuple[Parent, ...] = ()

    @property
    def url_variable(self) -> str:
        """Name of the environment variable that holds the upsert URL."""
        return f"ADMIN_{self.endpoint.upper()}_UPSERT_URL"

    def body(self, fields: dict[str, Any]) -> dict[str, Any]:
        """Return the item as it is sent: the fields given, and the model's defaults.

        Raises:
            pydantic.ValidationError: the fields don't fit the model.
        """
        self.model.model_validate(fields)
        return {**self._defaults, **fields}

    @cached_property
    def _defaults(self) -> dict[str, Any]:
        fields = self.model.model_fields.items()
        return {
            name: field.default
            for name, field in fields
            if not field.is_required() and field.default is not None
        }


ENTITY_TYPES: Final = (
    EntityType("tenant", "source_tenants", "id", "tenants", Tenant),
    EntityType("client", "source_clients", "id", "clients", Client),
    EntityType(
        "subtenant",
        "source_subtenants",
        "id",
        "subtenants",
        Subtenant,
        parents=(Parent("tenant_id", "tenant"),),
    ),
    EntityType(
        "domain",
        "source_domains",
        "host",
        "domains",
        Domain,
        parents=(
            Parent("tenant_id", "tenant"),
            Parent("default_subtenant_id", "subtenant"),
            Parent("client_id", "client"),
        ),
    ),
    EntityType(
        "branding",
        "source_brandings",
        "id",
        "branding",
        Branding,
        parents=(Parent("tenant_id", "tenant"), Parent("subtenant_id", "subtenant")),
    ),
)
"""All entity types, parents before children: the order in which stages run."""

_LABEL_LENGTH: Final = 255
"""No host name is longer."""


def in_one_line(text: str, length: int) -> str:
    """Return text from outside, cut to `length`, with characters that don't print written out."""
    shown = "".join(
        each if each.isprintable() else each.encode("unicode_escape").decode()
        for each in text[: length + 1]
    )
    return shown if len(shown) <= length else f"{shown[: length - 1]}…"


def label_of(natural_key: str | None, source_id: object) -> str:
    """Return what to call an item: its natural key, or its `_id` where it has none."""
    return in_one_line(natural_key or f"_id {source_id}", _LABEL_LENGTH)


EntityName = Literal["tenant", "client", "subtenant", "domain", "branding"]
ENTITY_NAMES: Final[list[EntityName]] = list(get_args(EntityName))

_BY_NAME: Final = {entity_type.name: entity_type for entity_type in ENTITY_TYPES}


def entity_type_named(name: str) -> EntityType:
    """Return the entity type of that name.

    Raises:
        KeyError: there is none.
    """
    return _BY_NAME[name]


def in_sync_order(names: list[EntityName]) -> list[EntityName]:
    """Return the names given, each once, parents before children."""
    return [name for name in ENTITY_NAMES if name in names]
