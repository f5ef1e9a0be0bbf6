"""The profile of a model folder, read from its own sentence-transformers files. Not what a profile is (models.py).

A folder that asks for more than a transformer, one pooling and unit length is refused: its vectors would be others.
"""

import json
from pathlib import Path
from typing import Any, Literal

from embedfleet.errors import UnknownModel
from embedfleet.models import QWEN_TEMPLATE, ModelProfile

Pooling = Literal["mean", "cls", "last"]

_POOLINGS: dict[str, Pooling] = {
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_cls_token": "cls",
    "pooling_mode_lasttoken": "last",
    "mean": "mean",
    "cls": "cls",
    "lasttoken": "last",
}
_MODULES = frozenset({"Transformer", "Pooling", "Normalize"})
_DOCUMENT_PROMPTS = ("document", "passage", "corpus")  # the first there is, as encode_document takes it


def read_profile(folder: Path) -> ModelProfile:
    """From config.json, modules.json, pooling, prompts and token limit. Raises UnknownModel naming the file."""
    config = _object(folder / "config.json")
    _check_modules(folder)
    pooling = _object(folder / "1_Pooling" / "config.json")
    query, document = _prompts(folder, pooling)
    transformer = _object(folder / "sentence_bert_config.json", {})
    if transformer.get("do_lower_case"):
        raise UnknownModel(
            f"model folder {str(folder)!r}: do_lower_case is not supported; use a lower-casing tokenizer."
        )
    template, instructions = _query_prompt(query)
    return ModelProfile(
        name=str(folder),
        dimensions=_number(config, "hidden_size", folder),
        max_tokens=_max_tokens(config, transformer, folder),
        pooling=_pooling_of(pooling, folder),
        parameters=_weights_bytes(folder) // _bytes_per_weight(config),
        query_template=template,
        document_template=_literal(document) + "{text}",
        instructions=instructions,
        min_dimensions=32 if config.get("is_matryoshka") else None,
        dtypes=("bfloat16", "float32"),
    )


def _check_modules(folder: Path) -> None:
    if not (folder / "modules.json").is_file():
        raise UnknownModel(
            f"model folder {str(folder)!r}: it has no modules.json, so its pooling is unknown. "
            "Save it with sentence-transformers, which writes that file."
        )
    modules = _read(folder / "modules.json")
    if not isinstance(modules, list) or not modules or not all(isinstance(module, dict) for module in modules):
        raise UnknownModel(f"model file {str(folder / 'modules.json')!r}: a list of modules was expected.")
    for kind in (str(module.get("type")).rsplit(".", 1)[-1] for module in modules):
        if kind not in _MODULES:
            raise UnknownModel(
                f"model folder {str(folder)!r}: its module {kind} is not supported, without which its vectors would be "
                "others. Choose a model of a transformer, a pooling and a normalisation."
            )


def _prompts(folder: Path, pooling: dict[str, Any]) -> tuple[str, str]:
    """What a query and a document begin with."""
    config = _object(folder / "config_sentence_transformers.json", {})
    prompts = {name: text for name, text in (config.get("prompts") or {}).items() if isinstance(text, str)}
    default = prompts.get(config.get("default_prompt_name") or "", "")
    document = next((prompts[name] for name in _DOCUMENT_PROMPTS if name in prompts), default)
    query = prompts.get("query", default)
    if (query or document) and pooling.get("include_prompt") is False:
        raise UnknownModel(f"model folder {str(folder)!r}: its pooling leaves the prompt out, which is not supported.")
    return query, document


def _query_prompt(prompt: str) -> tuple[str, dict[str, str]]:
    """A saved query prompt as template and instructions; the Instruct/Query form takes any instruction."""
    head, tail = "Instruct: ", "\nQuery:"
    if prompt.startswith(head) and prompt.endswith(tail):
        return QWEN_TEMPLATE, {"query": prompt[len(head) : -len(tail)]}
    return _literal(prompt) + "{text}", {}


def _literal(prompt: str) -> str:
    return prompt.replace("{", "{{").replace("}", "}}")


def _pooling_of(config: dict[str, Any], folder: Path) -> Pooling:
    chosen = [pooling for key, pooling in _POOLINGS.items() if config.get(key) or config.get("pooling_mode") == key]
    others = [key for key in config if key.startswith("pooling_mode_") and key not in _POOLINGS and config[key]]
    if len(chosen) != 1 or others:
        raise UnknownModel(f"model folder {str(folder)!r}: 1_Pooling/config.json must name mean, cls or lasttoken.")
    return chosen[0]


def _max_tokens(config: dict[str, Any], transformer: dict[str, Any], folder: Path) -> int:
    """The smallest limit that a file names: older versions of sentence-transformers wrote it elsewhere than newer."""
    positions = _number(config, "max_position_embeddings", folder)
    if "roberta" in str(config.get("model_type")):
        positions -= 2  # it counts them from behind the padding token's
    tokenizer = _object(folder / "tokenizer_config.json", {})
    limits = (transformer.get("max_seq_length"), tokenizer.get("model_max_length"))
    return min([positions, *(limit for limit in limits if isinstance(limit, int) and limit > 0)])


def _number(config: dict[str, Any], name: str, folder: Path) -> int:
    value = config.get(name)
    if not isinstance(value, int) or value < 1:
        raise UnknownModel(f"model folder {str(folder)!r}: config.json has no {name}. It is not an embedding model's.")
    return value


def _weights_bytes(folder: Path) -> int:
    files = list(folder.glob("*.safetensors")) or list(folder.glob("*.bin"))
    return sum(file.stat().st_size for file in files)


def _bytes_per_weight(config: dict[str, Any]) -> int:
    dtype = config.get("dtype") or config.get("torch_dtype") or "float32"
    return 4 if dtype == "float32" else 2


def _object(path: Path, default: dict[str, Any] | None = None) -> dict[str, Any]:
    if default is not None and not path.exists():
        return default
    loaded = _read(path)
    if not isinstance(loaded, dict):
        raise UnknownModel(f"model file {str(path)!r}: a JSON object was expected.")
    return loaded


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as exc:
        raise UnknownModel(f"model folder {str(path.parent)!r}: {path.name} can't be read ({exc.strerror}).") from None
    except ValueError as exc:
        raise UnknownModel(f"model file {str(path)!r}: not JSON ({exc}).") from None
