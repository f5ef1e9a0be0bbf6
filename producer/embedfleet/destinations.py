"""Where vectors go after the store: what a job says of it. Not how it is done (the worker's destinations/).

A destination stands in job.json, so it holds no secret: passwords and keys are settings of the workers that deliver.
"""

import hashlib
from abc import ABC, abstractmethod
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, field_validator

from embedfleet.errors import SettingsError
from embedfleet.masking import mask_url

NAME = r"^[a-z]{1,16}-[0-9a-f]{8}$"
"""Form of a destination's name: a folder of the job's and part of each webhook's id."""

_TABLE = r"^([a-z_][a-z0-9_]{0,62}\.)?[a-z_][a-z0-9_]{0,62}$"


class _Destination(BaseModel, ABC):
    model_config = ConfigDict(extra="forbid", frozen=True)

    @property
    def name(self) -> str:
        """The same for the same destination: its kind and a digest."""
        kind: str = self.kind  # type: ignore[attr-defined]
        return f"{kind}-{hashlib.sha256(self.model_dump_json().encode()).hexdigest()[:8]}"

    @property
    @abstractmethod
    def label(self) -> str:
        """What people call it; nothing of it is secret."""


class Webhook(_Destination):
    """A signed request per batch, with references to its part. Signing is the worker's: EMBEDFLEET_WEBHOOK_SECRET.

    >>> Webhook(url="https://app.example/vectors").name
    'webhook-46224dcc'
    """

    kind: Literal["webhook"] = "webhook"
    url: str = Field(max_length=2000)

    @field_validator("url")
    @classmethod
    def _plain(cls, url: str) -> str:
        parts = urlsplit(url)
        if parts.scheme not in ("https", "http") or not parts.hostname or not (url.isascii() and url.isprintable()):
            raise ValueError("an absolute https:// URL in ASCII was expected")
        if "@" in parts.netloc:
            raise ValueError("no user or password can stand in it: it is kept in the job folder")
        parts.port  # noqa: B018 - raises ValueError
        return url

    @property
    def label(self) -> str:
        """The URL without its query, which may hold a token."""
        return urlsplit(self.url)._replace(query="", fragment="").geturl()


class Pgvector(_Destination):
    """A table of the PostgreSQL database that the workers know as EMBEDFLEET_PGVECTOR_URL.

    >>> Pgvector(table="docs").name
    'pgvector-a8ab8934'
    """

    kind: Literal["pgvector"] = "pgvector"
    table: str = Field(pattern=_TABLE, description="table or schema.table, in lower case")

    @property
    def label(self) -> str:
        """As it is typed."""
        return f"pgvector:{self.table}"


Target = Webhook | Pgvector
Destination = Annotated[Target, Field(discriminator="kind")]

CALLBACK = "callback"
"""Where a job's callback stands among its destinations: no destination has this name."""

_ADAPTER: TypeAdapter[Target] = TypeAdapter(Destination)


def parse_destination(text: str) -> Target:
    """A destination as it is typed: a webhook's URL, or ``pgvector:TABLE``. Raises SettingsError.

    >>> parse_destination("pgvector:public.docs").table
    'public.docs'
    """
    kind, _, rest = text.partition(":")
    given = {"kind": "pgvector", "table": rest} if kind == "pgvector" else {"kind": "webhook", "url": text}
    try:
        return _ADAPTER.validate_python(given)
    except ValidationError as exc:
        raise _refused("destination", text, exc, "https://host/path for a webhook, or pgvector:TABLE") from None


def parse_callback(url: str) -> Webhook:
    """The callback at a URL. Raises SettingsError.

    >>> parse_callback("https://app.example/done").label
    'https://app.example/done'
    """
    try:
        return Webhook(url=url)
    except ValidationError as exc:
        raise _refused("callback", url, exc, "https://host/path") from None


def _refused(what: str, text: str, exc: ValidationError, forms: str) -> SettingsError:
    """Without the query, which may hold a token."""
    reason = exc.errors(include_url=False, include_input=False)[0]["msg"].removeprefix("Value error, ")
    return SettingsError(f"{what} {mask_url(text[:200].partition('?')[0])!r}: {reason}. Give {forms}.")
