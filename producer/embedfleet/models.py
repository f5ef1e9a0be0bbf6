"""Model profiles: what must be known of a model before a text is queued for it, and how settings meet it.

The profiles are in profiles.py; a folder's is read in modelfolder.py, one of the operator's own in declared.py.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from embedfleet.chunking import resolved_chunking
from embedfleet.contract import EmbedSettings, InputType
from embedfleet.errors import ConfigurationError, SettingsError, UnknownModel

if TYPE_CHECKING:
    from embedfleet.declared import DeclaredModel

DEFAULT_MODEL = "sentence-transformers/all-MiniLM-L6-v2"
NONE_DECLARED: Mapping[str, "DeclaredModel"] = {}

Pooling = Literal["mean", "cls", "last"]
Dtype = Literal["bfloat16", "float32", "float16"]


@dataclass(frozen=True)
class Golden:
    """A vector that a reference implementation gave, by which a worker knows that it runs the model (probes.py)."""

    text: str
    input_type: InputType
    head: tuple[float, ...]
    """The first components of the full unit vector, computed in float32."""


@dataclass(frozen=True)
class ModelProfile:
    """What is known of one model. ``dimensions`` is the full length; Matryoshka models give shorter ones too."""

    name: str
    dimensions: int
    max_tokens: int
    """Token limit of one text, prompt and special tokens included."""
    pooling: Pooling
    parameters: int
    """Number of weights, to say beforehand whether the model fits; 0: not known."""
    query_template: str = "{text}"
    """Prompt of a query, with ``{instruction}`` if the model takes one."""
    document_template: str = "{text}"
    """Prompt of a document; for most models the bare text."""
    instructions: dict[str, str] = field(default_factory=dict)
    """Instructions by ``prompt_name``; ``"query"`` is the default one."""
    prompts: dict[str, str] = field(default_factory=dict)
    """Other whole templates by ``prompt_name``, for whatever kind of text."""
    min_dimensions: int | None = None
    """Smallest Matryoshka length; ``None``: only the full one."""
    shorter: tuple[int, ...] = ()
    """The only Matryoshka lengths, for a model that was not trained for every one."""
    dtypes: tuple[Dtype, ...] = ("bfloat16", "float32", "float16")
    """Number formats the model is sound in, best first."""
    golden: tuple[Golden, ...] = ()
    """What a worker's vectors are compared with before it serves; none where no reference could be run."""

    @property
    def takes_instruction(self) -> bool:
        """Whether queries may carry an instruction of their own."""
        return "{instruction}" in self.query_template

    @property
    def lengths(self) -> str:
        """The lengths of its vectors, for people."""
        if self.shorter:
            return f"{', '.join(map(str, self.shorter))} or {self.dimensions}"
        if self.min_dimensions is None:
            return f"only {self.dimensions}"
        return f"{self.min_dimensions} to {self.dimensions}"

    def template(self, input_type: InputType, prompt_name: str | None = None) -> str:
        """The prompt of this kind of text, or the one of that name."""
        if prompt_name in self.prompts:
            return self.prompts[prompt_name]
        return self.query_template if input_type == "query" else self.document_template

    def allows(self, dimensions: int) -> bool:
        """Whether the model gives vectors of this length."""
        if self.shorter or self.min_dimensions is None:
            return dimensions in (*self.shorter, self.dimensions)
        return self.min_dimensions <= dimensions <= self.dimensions


def profile_of(
    model: str, declared: Mapping[str, "DeclaredModel"] = NONE_DECLARED, revision: str | None = None
) -> ModelProfile:
    """The profile of a hub id, or of a folder. Raises UnknownModel.

    Looked for among the known ones, the ``declared`` ones, and by its own files in the folder or, for a hub id and its
    ``revision``, in this machine's hub cache. No network is asked.
    """
    from embedfleet.modelfolder import in_hub_cache, read_profile  # these need ModelProfile
    from embedfleet.profiles import PROFILES

    if model in PROFILES:
        return PROFILES[model]
    if model in declared:
        return declared[model].profile(model)
    folder = Path(model)
    if not (folder / "config.json").is_file():
        cached = in_hub_cache(model, revision)
        if cached is None:
            raise UnknownModel(
                f"model {model!r}: no profile is known (`embedfleet models` lists them), and its own files are not on "
                "this machine. Give its folder, or fetch a hub model's files once, as with `hf download`. Or: "
                + how_to_declare(model)
            )
        folder = cached
    return read_profile(folder, model)


def how_to_declare(model: str) -> str:
    """The lines of TOML that would make a model known, to be filled in."""
    return (
        "declare it in embedfleet.toml, for producers and workers, with what its model card says:\n"
        f"[models.{json.dumps(model, ensure_ascii=False)}]\n"
        "dimensions = 0   # length of its vectors\n"
        "max_tokens = 0   # token limit of a text, prompt and special tokens included\n"
        'pooling = ""     # mean, cls or last\n'
        'query_template = "{text}"      # such as "query: {text}"\n'
        'document_template = "{text}"   # such as "passage: {text}"'
    )


def named(model: str) -> str:
    """The model's one name: a folder's is its absolute path, whatever the current one is."""
    from embedfleet.profiles import PROFILES  # which needs ModelProfile

    return str(Path(model).resolve()) if model not in PROFILES and Path(model).is_dir() else model


def resolve(
    settings: EmbedSettings,
    default_model: str,
    declared: Mapping[str, "DeclaredModel"] = NONE_DECLARED,
    revision: str | None = None,
) -> EmbedSettings:
    """Settings with every choice made explicit, or SettingsError naming what the model would allow.

    >>> resolve(EmbedSettings(), DEFAULT_MODEL).dimensions
    384
    """
    model = named(settings.model or default_model)
    profile = profile_of(model, declared, revision)
    resolved = settings.model_copy(
        update={
            "model": model,
            "dimensions": _dimensions(settings, profile),
            "instruction": _instruction(settings, profile),
        }
    )
    return resolved.model_copy(update={"chunking": resolved_chunking(resolved, profile)})


def check_dtype(dtype: str, profile: ModelProfile) -> None:
    """Raise ConfigurationError for a number format in which the model's vectors would be wrong."""
    if dtype != "auto" and dtype not in profile.dtypes:
        raise ConfigurationError(
            f"dtype {dtype}: {profile.name} is not sound in it, or nobody has said that it is. "
            f"Take {' or '.join(profile.dtypes)}."
        )


def _dimensions(settings: EmbedSettings, profile: ModelProfile) -> int:
    wanted = settings.dimensions or profile.dimensions
    if not profile.allows(wanted):
        raise SettingsError(f"dimensions={wanted}: {profile.name} gives {profile.lengths}.")
    return wanted


def _instruction(settings: EmbedSettings, profile: ModelProfile) -> str | None:
    _check_asked(settings, profile)
    if settings.instruction is not None:
        if not settings.instruction.strip():
            raise SettingsError("instruction: it is blank. Write one, or leave it out for the model's own.")
        return settings.instruction
    if settings.prompt_name in profile.prompts or settings.input_type == "document" or not profile.takes_instruction:
        return None
    return profile.instructions[settings.prompt_name or "query"]


def _check_asked(settings: EmbedSettings, profile: ModelProfile) -> None:
    """What is asked of the prompt, or SettingsError with what could be."""
    name, instruction = settings.prompt_name, settings.instruction
    names = [*profile.instructions, *profile.prompts]
    if name in profile.prompts and instruction is None:  # a whole prompt, for either kind of text
        return
    if name is None and instruction is None:
        return
    if settings.input_type == "document" and (instruction is not None or name in profile.instructions or not names):
        raise SettingsError(
            'instruction: it belongs to queries and the texts are documents. Set input_type="query", or leave it out.'
        )
    if not names and not profile.takes_instruction:
        raise SettingsError(f"instruction: {profile.name} takes none. Leave instruction and prompt_name out.")
    if name is not None and name not in names:
        raise SettingsError(f"prompt_name={name!r}: {profile.name} has {', '.join(names)}.")
    if instruction is not None and not profile.takes_instruction:
        raise SettingsError(f"instruction: {profile.name} takes none; it has prompt_name {', '.join(names)}.")
    # Equal when settings that were resolved already come back.
    if name is not None and instruction is not None and profile.instructions.get(name) != instruction:
        raise SettingsError("instruction and prompt_name both say what the query is for: give one of them.")
