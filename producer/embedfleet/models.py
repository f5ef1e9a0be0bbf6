"""Model profiles: what must be known of a model before a text is queued for it. Data, and how settings meet it.

Source: the model cards of the named models on their hub. The profile of a folder is read in modelfolder.py.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from embedfleet.chunking import resolved_chunking
from embedfleet.contract import EmbedSettings, InputType
from embedfleet.errors import SettingsError, UnknownModel

DEFAULT_MODEL = "sentence-transformers/all-MiniLM-L6-v2"


@dataclass(frozen=True)
class ModelProfile:
    """What is known of one model. ``dimensions`` is the full length; Matryoshka models give shorter ones too."""

    name: str
    dimensions: int
    max_tokens: int
    """Token limit of one text, prompt and special tokens included."""
    pooling: Literal["mean", "cls", "last"]
    parameters: int
    """Number of weights, to say beforehand whether the model fits."""
    query_template: str = "{text}"
    """Prompt of a query, with ``{instruction}`` if the model takes one."""
    document_template: str = "{text}"
    """Prompt of a document; for most models the bare text."""
    instructions: dict[str, str] = field(default_factory=dict)
    """Instructions by ``prompt_name``; ``"query"`` is the default one."""
    min_dimensions: int | None = None
    """Smallest Matryoshka length; ``None``: only the full one."""
    dtypes: tuple[str, ...] = ("bfloat16", "float32", "float16")
    """Number formats the model is sound in, best first."""

    @property
    def takes_instruction(self) -> bool:
        """Whether queries may carry an instruction of their own."""
        return "{instruction}" in self.query_template

    def template(self, input_type: InputType) -> str:
        """The prompt of this kind of text."""
        return self.query_template if input_type == "query" else self.document_template

    def allows(self, dimensions: int) -> bool:
        """Whether the model gives vectors of this length."""
        if self.min_dimensions is None:
            return dimensions == self.dimensions
        return self.min_dimensions <= dimensions <= self.dimensions


QWEN_TEMPLATE = "Instruct: {instruction}\nQuery:{text}"  # no space after the colon: the tokens differ
_QWEN_INSTRUCTIONS = {"query": "Given a web search query, retrieve relevant passages that answer the query"}


def _qwen(size: str, dimensions: int, parameters: int) -> ModelProfile:
    return ModelProfile(
        name=f"Qwen/Qwen3-Embedding-{size}",
        dimensions=dimensions,
        max_tokens=32_768,
        pooling="last",
        parameters=parameters,
        query_template=QWEN_TEMPLATE,
        instructions=_QWEN_INSTRUCTIONS,
        min_dimensions=32,
        dtypes=("bfloat16", "float32"),  # float16 overflows to NaN on some inputs
    )


PROFILES = {
    profile.name: profile
    for profile in (
        ModelProfile(
            name=DEFAULT_MODEL,
            dimensions=384,
            max_tokens=256,  # sentence_bert_config.json, not the 512 positions the network has
            pooling="mean",
            parameters=22_713_216,
        ),
        _qwen("0.6B", 1024, 595_776_512),
        _qwen("4B", 2560, 4_021_774_336),
        _qwen("8B", 4096, 7_567_295_488),
    )
}


def profile_of(model: str) -> ModelProfile:
    """The profile of a hub id, or of a folder by its own files. Raises UnknownModel."""
    if model in PROFILES:
        return PROFILES[model]
    if (Path(model) / "config.json").is_file():
        from embedfleet.modelfolder import read_profile  # which needs ModelProfile

        return read_profile(Path(model))
    raise UnknownModel(
        f"model {model!r}: no profile is known and no folder of that name holds a config.json. "
        f"Known models: {', '.join(PROFILES)}; or give the folder of a sentence-transformers model."
    )


def named(model: str) -> str:
    """The model's one name: a folder's is its absolute path, whatever the current one is."""
    return str(Path(model).resolve()) if model not in PROFILES and Path(model).is_dir() else model


def resolve(settings: EmbedSettings, default_model: str) -> EmbedSettings:
    """Settings with every choice made explicit, or SettingsError naming what the model would allow.

    >>> resolve(EmbedSettings(), DEFAULT_MODEL).dimensions
    384
    """
    model = named(settings.model or default_model)
    profile = profile_of(model)
    resolved = settings.model_copy(
        update={
            "model": model,
            "dimensions": _dimensions(settings, profile),
            "instruction": _instruction(settings, profile),
        }
    )
    return resolved.model_copy(update={"chunking": resolved_chunking(resolved, profile)})


def _dimensions(settings: EmbedSettings, profile: ModelProfile) -> int:
    wanted = settings.dimensions or profile.dimensions
    if not profile.allows(wanted):
        lengths = (
            f"only {profile.dimensions}"
            if profile.min_dimensions is None
            else f"{profile.min_dimensions} to {profile.dimensions}"
        )
        raise SettingsError(f"dimensions={wanted}: {profile.name} gives {lengths}.")
    return wanted


def _instruction(settings: EmbedSettings, profile: ModelProfile) -> str | None:
    asked = settings.instruction is not None or settings.prompt_name is not None
    if asked and settings.input_type == "document":
        raise SettingsError(
            'instruction: it belongs to queries and the texts are documents. Set input_type="query", or leave it out.'
        )
    if asked and not profile.takes_instruction:
        raise SettingsError(f"instruction: {profile.name} takes none. Leave instruction and prompt_name out.")
    if settings.instruction is not None and settings.prompt_name is not None:
        named = profile.instructions.get(settings.prompt_name)
        if named != settings.instruction:  # equal when settings that were resolved already come back
            raise SettingsError("instruction and prompt_name both say what the query is for: give one of them.")
    if settings.instruction is not None:
        if not settings.instruction.strip():
            raise SettingsError("instruction: it is blank. Write one, or leave it out for the model's own.")
        return settings.instruction
    if settings.input_type == "document" or not profile.takes_instruction:
        return None
    return _named_instruction(settings.prompt_name or "query", profile)


def _named_instruction(name: str, profile: ModelProfile) -> str:
    if name not in profile.instructions:
        known = ", ".join(sorted(profile.instructions))
        raise SettingsError(f"prompt_name={name!r}: {profile.name} has {known}.")
    return profile.instructions[name]
