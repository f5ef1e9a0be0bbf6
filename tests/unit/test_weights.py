"""Whether a model fits, and what is said when it does not; where weights are and what identifies them."""

import json
import re
import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedfleet.errors import ConfigurationError, ModelDoesNotFit
from embedfleet.models import DEFAULT_MODEL, ModelProfile, profile_of
from embedfleet.profiles import PROFILES
from embedfleet_worker.weights import Step, bytes_per_token, check_fits, check_pooling, digest, locate
from tests.tiny_qwen3 import build

GIB = 1024**3
STEP = Step(tokens=8192, texts=64)
QWEN_8B = """{"num_hidden_layers": 36, "num_key_value_heads": 8, "head_dim": 128, "num_attention_heads": 32,
"hidden_size": 4096}"""


@pytest.fixture(scope="module")
def qwen_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The one file of Qwen3-Embedding-8B that is looked at."""
    folder = tmp_path_factory.mktemp("qwen")
    (folder / "config.json").write_text(QWEN_8B)
    return folder


def refusal(profile: ModelProfile, folder: Path, dtype: str, max_tokens: int, free: int) -> str:
    with pytest.raises(ModelDoesNotFit) as refused:
        check_fits(profile, folder, dtype, max_tokens, STEP, free)
    return str(refused.value)


def test_a_refusal_says_need_have_and_what_would_fit(qwen_folder: Path) -> None:
    said = refusal(PROFILES["Qwen/Qwen3-Embedding-8B"], qwen_folder, "float32", 32_768, 24 * GIB)
    assert said == (
        "model Qwen/Qwen3-Embedding-8B in float32 with 32768 tokens a text needs 40.7 GiB and 24.0 GiB are free. "
        "What would fit: EMBEDFLEET_DTYPE=bfloat16 with EMBEDFLEET_MAX_TOKENS=32768."
    )


def test_when_only_shorter_texts_fit_it_says_so(qwen_folder: Path) -> None:
    said = refusal(PROFILES["Qwen/Qwen3-Embedding-8B"], qwen_folder, "bfloat16", 32_768, 19 * GIB)
    assert "EMBEDFLEET_MAX_TOKENS=8192" in said


def test_when_nothing_fits_it_says_so(qwen_folder: Path) -> None:
    said = refusal(PROFILES["Qwen/Qwen3-Embedding-8B"], qwen_folder, "bfloat16", 32_768, GIB)
    assert said.endswith("No setting makes it fit here: take a smaller model or a larger machine.")


@given(
    st.sampled_from(list(PROFILES)),
    st.sampled_from(["bfloat16", "float32"]),
    st.sampled_from([256, 512, 1000, 8192, 32_768]),
    st.floats(0.5, 60),
)
def test_what_is_said_to_fit_fits(
    tmp_path_factory: pytest.TempPathFactory, model: str, dtype: str, max_tokens: int, free_gib: float
) -> None:
    folder = tmp_path_factory.getbasetemp() / "qwen-config"
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(QWEN_8B)
    free = int(free_gib * GIB)
    try:
        check_fits(profile_of(model), folder, dtype, max_tokens, STEP, free)
    except ModelDoesNotFit as exc:
        advice = re.search(r"EMBEDFLEET_DTYPE=(\w+) with EMBEDFLEET_MAX_TOKENS=(\d+)", str(exc))
        if advice:
            assert check_fits(profile_of(model), folder, advice[1], int(advice[2]), STEP, free) > 0


def test_the_attention_cache_holds_a_full_step_and_the_longest_text(qwen_folder: Path) -> None:
    per_token = bytes_per_token(qwen_folder, "bfloat16")
    assert per_token == 2 * 36 * 8 * 128 * 2
    for max_tokens in (512, 8192, 32_768):
        cache = check_fits(PROFILES["Qwen/Qwen3-Embedding-8B"], qwen_folder, "bfloat16", max_tokens, STEP, 100 * GIB)
        assert cache >= max(max_tokens, STEP.tokens) * per_token


def test_an_encoder_needs_no_attention_cache(minilm: Path) -> None:
    assert check_fits(profile_of(DEFAULT_MODEL), minilm, "bfloat16", 256, STEP, 4 * GIB) == 0


# Where and which


def test_a_folder_is_where_it_is_and_the_small_model_comes_with_the_cpu_extra(tiny_qwen3: Path, minilm: Path) -> None:
    assert locate(str(tiny_qwen3), None) == tiny_qwen3
    assert locate(DEFAULT_MODEL, None) == minilm


def test_a_model_that_cannot_be_had_is_a_configuration_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    with pytest.raises(ConfigurationError, match="its files can't be had from the hub"):
        locate("Qwen/Qwen3-Embedding-8B", None)


def test_the_digest_is_that_of_names_and_contents(tmp_path: Path) -> None:
    first, same, other = build(tmp_path / "a"), build(tmp_path / "b"), build(tmp_path / "c", seed=1)
    assert digest(first) == digest(same) != digest(other)
    (same / "model.safetensors").rename(same / "model-2.safetensors")
    assert digest(first) != digest(same)
    (first / "config.json").write_text("{}")
    assert re.fullmatch(r"[0-9a-f]{64}", digest(first))


def test_a_folder_without_weights_is_a_configuration_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"no \*.safetensors file"):
        digest(tmp_path)


def test_files_that_pool_otherwise_are_another_models(minilm: Path, tmp_path: Path) -> None:
    profile = PROFILES[DEFAULT_MODEL]
    check_pooling(profile, minilm)
    check_pooling(profile, tmp_path)  # its files say nothing, and the profile's pooling is handed to the engine
    shutil.copytree(minilm, tmp_path / "changed", ignore=shutil.ignore_patterns("*.safetensors"))
    file = tmp_path / "changed" / "1_Pooling" / "config.json"
    changed = {**json.loads(file.read_text()), "pooling_mode_mean_tokens": False, "pooling_mode_cls_token": True}
    file.write_text(json.dumps(changed))
    with pytest.raises(ConfigurationError, match="say cls pooling, and the model's is mean"):
        check_pooling(profile, tmp_path / "changed")
    check_pooling(profile_of(str(tmp_path / "changed")), tmp_path / "changed")
