"""Model profiles: what must be known of a model before a text is queued for it. Data, and how to find it.

Sources: the model cards of the named models on their hub, and for a folder its own sentence-transformers files.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from embedfleet.contract import EmbedSettings
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
    """Prompt of a query, with ``{instruction}`` if the model takes one. A document is the bare text."""
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

    def allows(self, dimensions: int) -> bool:
        """Whether the model gives vectors of this length."""
        if self.min_dimensions is None:
            return dimensions == self.dimensions
        return self.min_dimensions <= dimensions <= self.dimensions


_QWEN_TEMPLATE = "Instruct: {instruction}\nQuery:{text}"  # no space after the colon: the tokens differ
_QWEN_INSTRUCTIONS = {"query": "Given a web search query, retrieve relevant passages that answer the query"}


def _qwen(size: str, dimensions: int, parameters: int) -> ModelProfile:
    return ModelProfile(
        name=f"Qwen/Qwen3-Embedding-{size}",
        dimensions=dimensions,
        max_tokens=32_768,
        pooling="last",
        parameters=parameters,
        query_template=_QWEN_TEMPLATE,
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
        return _from_folder(Path(model))
    raise UnknownModel(
        f"model {model!r}: no profile is known and no folder of that name holds a config.json. "
        f"Known models: {', '.join(PROFILES)}; or give the folder of a sentence-transformers model."
    )


def resolve(settings: EmbedSettings, default_model: str) -> EmbedSettings:
    """Settings with every choice made explicit, or SettingsError naming what the model would allow.

    >>> resolve(EmbedSettings(), DEFAULT_MODEL).dimensions
    384
    """
    profile = profile_of(settings.model or default_model)
    return settings.model_copy(
        update={
            "model": settings.model or default_model,
            "dimensions": _dimensions(settings, profile),
            "instruction": _instruction(settings, profile),
        }
    )


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


def _from_folder(folder: Path) -> ModelProfile:
    """A sentence-transformers folder: config.json, modules.json, pooling and prompts."""
    config = _read(folder / "config.json")
    if not (folder / "modules.json").is_file():
        raise UnknownModel(
            f"model folder {str(folder)!r}: it has no modules.json, so its pooling is unknown. "
            "Save it with sentence-transformers, which writes that file."
        )
    pooling = _read(folder / "1_Pooling" / "config.json")
    prompts = _read(folder / "config_sentence_transformers.json", {}).get("prompts", {})
    limit = _read(folder / "sentence_bert_config.json", {}).get("max_seq_length")
    template, instructions = _query_prompt(prompts.get("query", ""))
    full = _number(config, "hidden_size", folder)
    return ModelProfile(
        name=str(folder),
        dimensions=full,
        max_tokens=int(limit) if limit else _number(config, "max_position_embeddings", folder),
        pooling=_pooling_of(pooling, folder),
        parameters=sum(f.stat().st_size for f in folder.glob("*.safetensors")) // _bytes_per_weight(config),
        query_template=template,
        instructions=instructions,
        min_dimensions=32 if config.get("is_matryoshka") else None,
        dtypes=("bfloat16", "float32"),
    )


def _number(config: dict[str, Any], name: str, folder: Path) -> int:
    value = config.get(name)
    if not isinstance(value, int) or value < 1:
        raise UnknownModel(f"model folder {str(folder)!r}: config.json has no {name}. It is not an embedding model's.")
    return value


def _query_prompt(prompt: str) -> tuple[str, dict[str, str]]:
    """A saved query prompt as template and instructions; the Instruct/Query form takes any instruction."""
    head, tail = "Instruct: ", "\nQuery:"
    if prompt.startswith(head) and prompt.endswith(tail):
        return _QWEN_TEMPLATE, {"query": prompt[len(head) : -len(tail)]}
    return prompt.replace("{", "{{").replace("}", "}}") + "{text}", {}


def _pooling_of(config: dict[str, object], folder: Path) -> Literal["mean", "cls", "last"]:
    modes: dict[str, Literal["mean", "cls", "last"]] = {
        "pooling_mode_mean_tokens": "mean",
        "pooling_mode_cls_token": "cls",
        "pooling_mode_lasttoken": "last",
        "mean": "mean",
        "cls": "cls",
        "lasttoken": "last",
    }
    chosen = [pooling for key, pooling in modes.items() if config.get(key) or config.get("pooling_mode") == key]
    if len(chosen) != 1:
        raise UnknownModel(f"model folder {str(folder)!r}: 1_Pooling/config.json must name mean, cls or lasttoken.")
    return chosen[0]


def _bytes_per_weight(config: dict[str, object]) -> int:
    dtype = config.get("dtype") or config.get("torch_dtype") or "float32"
    return 4 if dtype == "float32" else 2


def _read(path: Path, default: dict[str, Any] | None = None) -> dict[str, Any]:
    try:
        loaded = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        if default is not None:
            return default
        raise UnknownModel(f"model folder {str(path.parent)!r}: {path.name} is missing.") from None
    except ValueError as exc:
        raise UnknownModel(f"model file {str(path)!r}: not JSON ({exc}).") from None
    if not isinstance(loaded, dict):
        raise UnknownModel(f"model file {str(path)!r}: a JSON object was expected.")
    return loaded
