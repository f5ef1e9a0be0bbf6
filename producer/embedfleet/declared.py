"""Models that the operator declares, in embedfleet.toml or EMBEDFLEET_MODELS. Not the known ones (profiles.py)."""

import json
import string
from collections.abc import Mapping
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from embedfleet.contract import describe
from embedfleet.models import Dtype, ModelProfile, Pooling, named
from embedfleet.profiles import PROFILES


def _document(template: str) -> str:
    """A template of texts only."""
    return _template(template, {"text"})


def _query(template: str) -> str:
    return _template(template, {"text", "instruction"})


def _template(template: str, allowed: set[str]) -> str:
    try:
        parts = list(string.Formatter().parse(template))
    except ValueError as exc:
        raise ValueError(f"it is no template ({exc}). Write {{{{ for a brace that is meant") from None
    fields = [name for _, name, _, _ in parts if name is not None]
    plain = all(not spec and conversion is None for _, name, spec, conversion in parts if name is not None)
    if fields.count("text") != 1 or not set(fields) <= allowed or not plain:
        known = " and ".join(f"{{{name}}}" for name in sorted(allowed, reverse=True))
        raise ValueError(f"it must have {{text}} once and may have only {known}. Write {{{{ for a brace that is meant")
    return template


class DeclaredModel(BaseModel):
    """What a model card says. The fields are those of :class:`~embedfleet.models.ModelProfile`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    dimensions: int = Field(ge=1)
    max_tokens: int = Field(ge=8)
    pooling: Pooling
    query_template: Annotated[str, AfterValidator(_query)] = "{text}"
    document_template: Annotated[str, AfterValidator(_document)] = "{text}"
    instructions: dict[str, str] = {}
    prompts: dict[str, Annotated[str, AfterValidator(_document)]] = {}
    min_dimensions: int | None = Field(default=None, ge=1)
    shorter: tuple[Annotated[int, Field(ge=1)], ...] = ()
    dtypes: tuple[Dtype, ...] = Field(default=("bfloat16", "float32"), min_length=1)
    parameters: int = Field(default=0, ge=0)

    @model_validator(mode="after")
    def _fits(self) -> "DeclaredModel":
        if any(length >= self.dimensions for length in (self.min_dimensions or 0, *self.shorter)):
            raise ValueError("min_dimensions and shorter: they must be below dimensions")
        if "{instruction}" in self.query_template and "query" not in self.instructions:
            raise ValueError('instructions: "query" is missing, the instruction of a query that names none')
        if "{instruction}" not in self.query_template and self.instructions:
            raise ValueError("instructions: query_template has no {instruction}; prompts are whole templates by name")
        return self

    def profile(self, name: str) -> ModelProfile:
        """The profile of the model of this name."""
        return ModelProfile(name=name, **self.model_dump())


def declared_models(value: object) -> object:
    """The declarations by their models' names, each checked. ``value``: a table, or JSON.

    Raises ValueError naming model and field.
    """
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError as exc:
            raise ValueError(f"not JSON ({exc})") from None
    if not isinstance(value, Mapping):
        raise ValueError('tables by model name were expected, as [models."org/name"] in embedfleet.toml')
    return {named(model): _declared(model, declaration) for model, declaration in value.items()}


def _declared(model: str, declaration: object) -> DeclaredModel:
    if isinstance(declaration, DeclaredModel):
        return declaration
    if model in PROFILES:
        raise ValueError(f"{json.dumps(model)}: its profile is known (`embedfleet models show {model}`); leave it out")
    try:
        return DeclaredModel.model_validate(declaration)
    except ValidationError as exc:
        raise ValueError(f"{json.dumps(model)}: {describe(exc)}") from None


def as_json(models: Mapping[str, DeclaredModel]) -> str:
    """The declarations as EMBEDFLEET_MODELS has them."""
    said = {model: found.model_dump(mode="json", exclude_defaults=True) for model, found in models.items()}
    return json.dumps(said, ensure_ascii=False)
