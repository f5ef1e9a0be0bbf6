"""The settings of a fleet, from arguments, EMBEDFLEET_*, .env and embedfleet.toml. Not those of a task (contract.py).

Each field is at once an argument of ``Fleet``, an environment variable and a command-line option.
"""

import difflib
import json
import os
import re
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

from dotenv import dotenv_values
from pydantic import BeforeValidator, Field, SecretStr, ValidationError, field_validator
from pydantic_settings import (
    BaseSettings,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from embedfleet import models as profiles
from embedfleet.contract import EmbedSettings, describe
from embedfleet.declared import DeclaredModel, as_json, declared_models
from embedfleet.errors import ConfigurationError
from embedfleet.masking import mask
from embedfleet.models import DEFAULT_MODEL, ModelProfile, named

_PREFIX = "EMBEDFLEET_"
_MIN_KEY = 16  # characters: what is shorter can be guessed from one signed message

Lane = Literal["interactive", "bulk", "deliver"]
DEADLINE_S: float = 600  # a batch of 65,536 tokens takes a CPU minutes and a GPU seconds
LANES: tuple[Lane, ...] = ("interactive", "bulk", "deliver")
_API_URL = re.compile(r"https?://(\[[0-9a-f:.]+\]|[a-z0-9._-]+)(:[0-9]{1,5})?(/[a-z0-9._~%+,=:@-]*)*", re.A | re.I)
# What Kubernetes sets in every container for a service whose name begins with embedfleet.
_KUBERNETES = re.compile(r"_(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT|PORT_\d+_(TCP|UDP)(_\w+)?)$")


class FleetSettings(BaseSettings):
    """What producers, workers and the command line share. Use :func:`load`, whose errors are for people."""

    model_config = SettingsConfigDict(
        env_prefix=_PREFIX,
        env_ignore_empty=True,  # what a compose file fills in from a variable that is not set
        env_file=".env",
        toml_file="embedfleet.toml",
        extra="ignore",
        frozen=True,
    )

    broker_url: SecretStr | None = Field(
        default=None,
        description="Queue: redis://…, rediss://…, redis+socket://…, redis+sentinel://… or sqs://region",
    )
    store: str | None = Field(default=None, description="Folder or s3://bucket/prefix for the job folders.")
    allowed_stores: Annotated[tuple[str, ...], NoDecode] = Field(
        (), description="Stores a worker may read and write, separated by commas; default: the store."
    )
    model: str = Field(default=DEFAULT_MODEL, description="Model of the worker and default of tasks: hub id or folder.")
    revision: str | None = Field(default=None, description="Revision of the model on its hub.")
    models: Annotated[dict[str, DeclaredModel], NoDecode, BeforeValidator(declared_models)] = Field(
        default={}, description='Models without a profile, declared: [models."org/name"] in embedfleet.toml, or JSON.'
    )
    engine: Literal["vllm", "openai", "synthetic"] = Field(
        default="vllm", description="What computes the vectors; openai: an OpenAI-compatible server."
    )
    openai_url: str | None = Field(
        default=None, description="API of the server of the engine openai, such as http://host:8000/v1."
    )
    openai_api_key: SecretStr | None = Field(default=None, description="Key that the server wants, if it wants one.")
    openai_model: str | None = Field(
        default=None, description="Name by which the server knows the model; default: the model's."
    )
    dtype: Literal["auto", "bfloat16", "float32", "float16"] = Field(
        default="auto",
        description="Number format of the engine; auto: bfloat16 where the hardware has it, else float32.",
    )
    quantization: str | None = Field(
        default=None,
        pattern=r"^[a-z0-9_-]{1,40}$",
        description="How vLLM, or the server, quantises the weights, by its name for that; default: as they are.",
    )
    max_tokens: int | None = Field(
        default=None, ge=8, description="Token limit of a text, below the model's own; saves memory."
    )
    cache_url: SecretStr | None = Field(default=None, description="Redis of the vector cache; none: no cache.")
    cache_salt: SecretStr = Field(default=SecretStr(""), description="Separates the cache entries of tenants.")
    queue_prefix: str = Field(
        default="embedfleet", pattern=r"^[a-z0-9-]{1,18}$", description="First part of queue names."
    )
    signing_key: SecretStr | None = Field(
        default=None, description="Signs messages: 16 characters or more, the same for producers and workers."
    )
    lease_s: float = Field(
        default=30, ge=1, le=43_200, description="Seconds until a dead worker's batches go to another."
    )
    deadline_s: float = Field(
        default=DEADLINE_S,
        ge=1,
        le=86_400,
        description="Seconds that a batch may be in the engine; then it is aborted and tried elsewhere, alone.",
    )
    grace_s: float = Field(
        default=25, ge=0, le=3600, description="Seconds in which a worker that is told to stop finishes what it began."
    )
    queues: Annotated[tuple[Lane, ...], NoDecode] = Field(
        LANES,
        min_length=1,
        description="Lanes that a worker takes from, separated by commas; deliver alone needs no engine.",
    )
    health_port: int = Field(
        default=9464, ge=0, le=65_535, description="Port of a worker's /livez, /readyz and /metrics; 0: none."
    )
    webhook_secret: SecretStr | None = Field(
        default=None, description="Signs webhooks: whsec_ and 24 to 64 bytes in base64 (Standard Webhooks)."
    )
    webhook_origins: Annotated[tuple[str, ...], NoDecode] = Field(
        (), description="Origins that webhooks may go to, such as https://app.example; default: every https one."
    )
    webhook_networks: Annotated[tuple[str, ...], NoDecode] = Field(
        (), description="Networks that are not public and that webhooks may reach, such as 10.1.0.0/16."
    )
    pgvector_url: SecretStr | None = Field(
        default=None, description="Database of pgvector deliveries: postgresql://user:password@host/database."
    )
    synthetic_texts_per_s: float = Field(
        default=0, ge=0, description="Speed of the synthetic engine; 0: as fast as it can."
    )

    @field_validator("model")
    @classmethod
    def _name(cls, value: str) -> str:
        return named(value)

    @field_validator("openai_url")
    @classmethod
    def _url(cls, value: str | None) -> str | None:
        if value is not None and not _API_URL.fullmatch(value):
            raise ValueError("it is no http(s)://host:port/path in ASCII, without user, password and query")
        return value.rstrip("/") if value else value

    @field_validator("signing_key")
    @classmethod
    def _key(cls, value: SecretStr | None) -> SecretStr | None:
        if value is None:
            return None
        key = value.get_secret_value().strip()  # the end of the line that it was read from is no part of it
        if len(key) < _MIN_KEY:
            raise ValueError(f"at least {_MIN_KEY} characters are needed, such as those of `openssl rand -hex 32`")
        return SecretStr(key)

    @field_validator("allowed_stores", "queues", "webhook_origins", "webhook_networks", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        return (
            tuple(part.strip(" ") for part in value.split(",") if part.strip(" ")) if isinstance(value, str) else value
        )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - pydantic-settings passes it by name
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Arguments over environment over .env over embedfleet.toml."""
        return init_settings, env_settings, dotenv_settings, TomlConfigSettingsSource(settings_cls)

    @property
    def stores(self) -> tuple[str, ...]:
        """The stores a worker may use."""
        return self.allowed_stores or ((self.store,) if self.store else ())

    @property
    def is_local(self) -> bool:
        """Whether the broker is on this machine and goes with it."""
        return self.broker_url is not None and self.broker_url.get_secret_value().startswith("redis+socket:")

    @property
    def needs_engine(self) -> bool:
        """Whether a worker with these lanes embeds; one that only delivers does not."""
        return any(lane != "deliver" for lane in self.queues)

    def what_makes_vectors(self, model: str | None) -> dict[str, object]:
        """What changes a model's vectors beside the settings of a task; part of the keys that are made up."""
        found: dict[str, object] = {name: getattr(self, name) for name in ("engine", "revision", "dtype", "max_tokens")}
        # Left out where it is not used: the same command goes on with what it began before there was this setting.
        if self.quantization is not None:
            found["quantization"] = self.quantization
        if self.engine == "openai":
            found["openai_model"] = self.openai_model
        if model in self.models:
            found["declared"] = as_json({model: self.models[model]})
        return found

    def profile(self, model: str | None = None) -> ModelProfile:
        """The profile of a model, by default of this fleet's. Raises UnknownModel."""
        return profiles.profile_of(model or self.model, self.models, self.revision)

    def resolve(self, settings: EmbedSettings) -> EmbedSettings:
        """Settings of a task with every choice made explicit.

        Raises SettingsError, and ConfigurationError for a dtype that is not sound for the model.
        """
        resolved = profiles.resolve(settings, self.model, self.models, self.revision)
        if self.engine == "vllm":
            profiles.check_dtype(self.dtype, self.profile(resolved.model))
        return resolved

    def environment(self) -> dict[str, str]:
        """These settings as EMBEDFLEET_* variables, secrets in clear: for the processes of this fleet only."""
        return {_PREFIX + name.upper(): _clear(value) for name, value in self if value not in (None, (), {})}

    def shared(self) -> dict[str, str]:
        """The variables on which producers and workers have to agree, secrets in clear."""
        names = ("broker_url", "store", "model", "revision", "models", "engine", "queue_prefix", "signing_key")
        return {f"{_PREFIX}{name.upper()}": self.environment().get(f"{_PREFIX}{name.upper()}", "") for name in names}

    def masked(self) -> dict[str, object]:
        """These settings for people: passwords in URLs and other secrets replaced."""
        shown = {name: mask(_clear(value)) if isinstance(value, SecretStr) else value for name, value in self}
        return {**shown, "models": json.loads(as_json(self.models))}

    @classmethod
    def secrets(cls) -> set[str]:
        """Names of the settings that are secret."""
        return {name for name, field in cls.model_fields.items() if "SecretStr" in str(field.annotation)}


def load(**arguments: Any) -> FleetSettings:
    """Settings from every source; what is ``None`` or empty counts as not given. Raises ConfigurationError."""
    given = {name: value for name, value in arguments.items() if value not in (None, "")}
    _refuse_unknown(given, FleetSettings.model_fields, "argument {!r}")
    _refuse_unknown(_toml(), FleetSettings.model_fields, "embedfleet.toml: {!r}")
    variables = {_PREFIX + name.upper() for name in FleetSettings.model_fields}
    for where, names in (("{}", os.environ), (".env: {}", _dotenv())):
        ours = [name for name in names if name.upper().startswith(_PREFIX) and not _KUBERNETES.search(name)]
        _refuse_unknown(ours, variables, where)
    try:
        return FleetSettings(**given)
    except ValidationError as exc:
        raise ConfigurationError(f"configuration: {describe(exc)}. See `embedfleet config show`.") from None


def _clear(value: object) -> str:
    if isinstance(value, SecretStr):
        return value.get_secret_value()
    if isinstance(value, dict):
        return as_json(value)
    return ",".join(value) if isinstance(value, tuple) else str(value)


def _refuse_unknown(names: Iterable[str], known: Iterable[str], where: str) -> None:
    """A setting that is misspelt would be one that is not set."""
    for name in sorted(set(names) - set(known)):
        bare = {setting.removeprefix(_PREFIX): setting for setting in known}  # the prefix makes all look alike
        close = difflib.get_close_matches(name.removeprefix(_PREFIX), bare, n=1)
        hint = f" Did you mean {bare[close[0]]}?" if close else f" Known: {', '.join(sorted(known))}."
        raise ConfigurationError(f"{where.format(name)}: no such setting.{hint}")


def _toml() -> dict[str, Any]:
    try:
        return tomllib.loads(Path("embedfleet.toml").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as exc:
        raise ConfigurationError(f"embedfleet.toml: {exc}.") from None


def _dotenv() -> dict[str, str | None]:
    try:
        return dotenv_values(".env")
    except (OSError, ValueError) as exc:
        raise ConfigurationError(f".env: {exc}.") from None
