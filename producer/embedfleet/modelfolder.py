"""The profile of a model by its own sentence-transformers files, in a folder. Not what a profile is (models.py).

A model that asks for more than a transformer, one pooling and unit length is refused: its vectors would be others.
"""

import json
import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from embedfleet.errors import UnknownModel
from embedfleet.models import ModelProfile, Pooling, how_to_declare

_POOLINGS: dict[str, Pooling] = {"mean": "mean", "cls": "cls", "lasttoken": "last"}
_OLD_POOLINGS = {
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_cls_token": "cls",
    "pooling_mode_lasttoken": "lasttoken",
}
_MODULES = ["Transformer", "Pooling", "Normalize"]
_DOCUMENT_PROMPTS = ("document", "passage", "corpus")  # the first there is, as encode_document takes it
_INSTRUCT = re.compile(r"Instruct: (?P<instruction>[^\n]+)(?P<tail>\nQuery: ?)")  # a prompt that may say anything there
_FROM_BEHIND_PADDING = ("roberta", "camembert", "mpnet")  # architectures that count positions from there


def in_hub_cache(model: str, revision: str | None) -> Path | None:
    """The folder of a hub id's files on this machine, if huggingface_hub is installed and has fetched them."""
    if find_spec("huggingface_hub") is None:
        return None
    from huggingface_hub import try_to_load_from_cache

    try:
        found = try_to_load_from_cache(model, "config.json", revision=revision)
    except ValueError:  # no hub id
        return None
    return Path(found).parent if isinstance(found, str) else None


def read_profile(folder: Path, model: str) -> ModelProfile:
    """From config.json, modules.json, pooling, prompts and token limit. Raises UnknownModel naming the file."""
    config = _object(folder / "config.json")
    pooling = _object(folder / _pooling_folder(folder, model) / "config.json")
    own = _object(folder / "config_sentence_transformers.json", {})
    if own.get("model_type", "SentenceTransformer") != "SentenceTransformer":
        raise UnknownModel(f"model folder {str(folder)!r}: it is a {own['model_type']}, which gives no single vectors.")
    transformer = _transformer(folder)
    prompts = {name: text for name, text in (own.get("prompts") or {}).items() if isinstance(text, str)}
    if any(prompts.values()) and pooling.get("include_prompt") is False:
        raise UnknownModel(f"model folder {str(folder)!r}: its pooling leaves the prompt out, which is not supported.")
    dimensions = _number(config, "hidden_size", folder)
    trained = config.get("matryoshka_dimensions")
    shorter = sorted(length for length in trained if 0 < length < dimensions) if isinstance(trained, list) else []
    return ModelProfile(
        name=model,
        dimensions=dimensions,
        max_tokens=_max_tokens(config, transformer, folder),
        pooling=_pooling_of(pooling, folder),
        parameters=_weights_bytes(folder) // _bytes_per_weight(config),
        **_templates(prompts, prompts.get(own.get("default_prompt_name") or "", "")),
        min_dimensions=32 if config.get("is_matryoshka") and not shorter else None,
        shorter=tuple(shorter),
        dtypes=("bfloat16", "float32"),
    )


def pooling_in(folder: Path, model: str) -> Pooling | None:
    """What the folder's files say of the pooling; None where they say nothing. Raises UnknownModel."""
    if not (folder / "modules.json").is_file():
        return None
    return _pooling_of(_object(folder / _pooling_folder(folder, model) / "config.json"), folder)


def _pooling_folder(folder: Path, model: str) -> str:
    """Where the pooling is, once modules.json asks for nothing that is not done."""
    if not (folder / "modules.json").is_file():
        raise UnknownModel(
            f"model folder {str(folder)!r}: it has no modules.json, so its pooling is unknown. "
            f"Save it with sentence-transformers, which writes that file. Or: {how_to_declare(model)}"
        )
    modules = _read(folder / "modules.json")
    if not isinstance(modules, list) or not modules or not all(isinstance(module, dict) for module in modules):
        raise UnknownModel(f"model file {str(folder / 'modules.json')!r}: a list of modules was expected.")
    kinds = [_kind(module) for module in modules]
    for kind in kinds:
        if kind not in _MODULES:
            raise UnknownModel(
                f"model folder {str(folder)!r}: its module {kind} is not supported, without which its vectors would be "
                "others. Choose a model of a transformer, a pooling and a normalisation."
            )
    if kinds not in (_MODULES, _MODULES[:2]) or modules[0].get("path"):
        raise UnknownModel(
            f"model file {str(folder / 'modules.json')!r}: a Transformer in the folder itself, then a Pooling, then "
            f"perhaps a Normalize was expected, not {', '.join(kinds)}."
        )
    return str(modules[1].get("path") or "1_Pooling")


def _kind(module: dict[str, Any]) -> str:
    """The class, without its path if it is one of sentence-transformers, whose paths change between versions."""
    path, _, name = str(module.get("type")).rpartition(".")
    return name if path.split(".")[0] == "sentence_transformers" else f"{path}.{name}"


def _transformer(folder: Path) -> dict[str, Any]:
    """What sentence_bert_config.json says; old versions of sentence-transformers named it after the architecture."""
    files = [folder / "sentence_bert_config.json", *sorted(folder.glob("sentence_*_config.json"))]
    transformer = _object(next((file for file in files if file.exists()), files[0]), {})
    if transformer.get("do_lower_case"):
        raise UnknownModel(
            f"model folder {str(folder)!r}: do_lower_case is not supported; use a lower-casing tokenizer."
        )
    task = transformer.get("transformer_task", "feature-extraction")
    if task != "feature-extraction":
        raise UnknownModel(f"model folder {str(folder)!r}: its transformer_task is {task}, not feature-extraction.")
    return transformer


def _templates(prompts: dict[str, str], default: str) -> dict[str, Any]:
    """The profile's fields of templates, from saved prompts. One that is nobody's is a prompt by its name.

    sentence-transformers 5 and later save an empty ``document`` beside a ``passage`` that was there before.
    """
    saved = [prompts[name] for name in _DOCUMENT_PROMPTS if name in prompts]
    query, document = prompts.get("query", default), next(filter(None, saved), "") if saved else default
    found: dict[str, Any] = {"document_template": _literal(document), "query_template": _literal(query)}
    others = {name: text for name, text in prompts.items() if text and name not in ("query", *_DOCUMENT_PROMPTS)}
    if free := _INSTRUCT.fullmatch(query):
        alike = {name: _INSTRUCT.fullmatch(text) for name, text in others.items()}
        same = {name: match["instruction"] for name, match in alike.items() if match and match["tail"] == free["tail"]}
        found["query_template"] = f"Instruct: {{instruction}}{free['tail']}{{text}}"
        found["instructions"] = {"query": free["instruction"], **same}
        others = {name: text for name, text in others.items() if name not in same}
    return {**found, "prompts": {name: _literal(text) for name, text in others.items()}}


def _literal(prompt: str) -> str:
    return prompt.replace("{", "{{").replace("}", "}}") + "{text}"


def _pooling_of(config: dict[str, Any], folder: Path) -> Pooling:
    old = [_OLD_POOLINGS.get(key, key) for key in config if key.startswith("pooling_mode_") and config[key]]
    chosen = config.get("pooling_mode", old[0] if len(old) == 1 else None)
    if isinstance(chosen, str) and chosen in _POOLINGS:
        return _POOLINGS[chosen]
    raise UnknownModel(f"model folder {str(folder)!r}: its pooling's config.json must name mean, cls or lasttoken.")


def _max_tokens(config: dict[str, Any], transformer: dict[str, Any], folder: Path) -> int:
    """The smallest limit that a file names: older versions of sentence-transformers wrote it elsewhere than newer."""
    positions = _number(config, "max_position_embeddings", folder)
    if any(architecture in str(config.get("model_type")) for architecture in _FROM_BEHIND_PADDING):
        positions -= 2
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
