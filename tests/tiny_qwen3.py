"""A random model in the shape of Qwen3-Embedding, small enough to build in a test. Its vectors mean nothing.

It has what trips pipelines up in the real one: the last-token pooling rests on ``<|endoftext|>``, which the
tokenizer's template appends and which is not ``tokenizer.eos_token`` (``<|im_end|>``).
"""

import json
import shutil
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

HIDDEN = 128
LAYERS = 2
HEADS = 4
KV_HEADS = 2
HEAD_DIM = 32
INTERMEDIATE = 256
MAX_TOKENS = 512

END, START, EOS = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
MERGES = (("t", "h"), ("th", "e"), ("i", "n"), ("Ġ", "the"))
"""Few, so that nearly every byte stays a token and the token count of a text is easy to foresee."""

QUERY_PROMPT = "Instruct: Given a web search query, retrieve relevant passages that answer the query\nQuery:"


def build(folder: Path, *, seed: int = 0) -> Path:
    """Write the model into ``folder`` (made if missing, overwritten if there) and return it.

    The same seed gives the same bytes. Vectors have 128 dimensions (Matryoshka: 32 to 128), texts 512 tokens at most.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = _tokenizer()
    tokenizer.save(str(folder / "tokenizer.json"))
    vocabulary = tokenizer.get_vocab()
    save_file(_weights(len(vocabulary), seed), folder / "model.safetensors", metadata={"format": "pt"})
    for name, content in _documents(len(vocabulary), vocabulary[END]).items():
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return folder


def quantise(source: Path, folder: Path) -> Path:
    """The model with its linear layers in 8 bits, as a checkpoint in the form of compressed-tensors (W8A8)."""
    shutil.copytree(source, folder)
    weights: dict[str, NDArray[np.generic]] = {}
    for name, matrix in load_file(source / "model.safetensors").items():
        if not name.endswith("proj.weight"):
            weights[name] = matrix
            continue
        scale = np.abs(matrix).max(axis=1, keepdims=True) / np.float32(127)
        weights[name] = np.round(matrix / scale).astype(np.int8)
        weights[f"{name}_scale"] = scale
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    integers = {"num_bits": 8, "type": "int", "symmetric": True}
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config["quantization_config"] = {
        "quant_method": "compressed-tensors",
        "format": "int-quantized",
        "quantization_status": "compressed",
        "ignore": [],
        "config_groups": {
            "group_0": {
                "targets": ["Linear"],
                "weights": {**integers, "strategy": "channel", "dynamic": False},
                "input_activations": {**integers, "strategy": "token", "dynamic": True},
            }
        },
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    return folder


def _tokenizer() -> Tokenizer:
    tokens = sorted(pre_tokenizers.ByteLevel.alphabet()) + [left + right for left, right in MERGES]
    tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, list(MERGES)))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in (END, START, EOS)])
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"$A {END}", pair=f"$A {END} $B {END}", special_tokens=[(END, tokenizer.get_vocab()[END])]
    )
    return tokenizer


def _weights(vocabulary: int, seed: int) -> dict[str, NDArray[np.float32]]:
    random = np.random.default_rng(seed)

    def matrix(rows: int, columns: int) -> NDArray[np.float32]:
        # Scaled by the fan-in: at transformers' 0.02 two layers would hardly tell texts apart.
        return random.standard_normal((rows, columns), dtype=np.float32) / np.float32(columns**0.5)

    weights = {"embed_tokens.weight": matrix(vocabulary, HIDDEN), "norm.weight": np.ones(HIDDEN, np.float32)}
    for layer in (f"layers.{i}" for i in range(LAYERS)):
        weights |= {
            f"{layer}.input_layernorm.weight": np.ones(HIDDEN, np.float32),
            f"{layer}.post_attention_layernorm.weight": np.ones(HIDDEN, np.float32),
            f"{layer}.self_attn.q_norm.weight": np.ones(HEAD_DIM, np.float32),
            f"{layer}.self_attn.k_norm.weight": np.ones(HEAD_DIM, np.float32),
            f"{layer}.self_attn.q_proj.weight": matrix(HEADS * HEAD_DIM, HIDDEN),
            f"{layer}.self_attn.k_proj.weight": matrix(KV_HEADS * HEAD_DIM, HIDDEN),
            f"{layer}.self_attn.v_proj.weight": matrix(KV_HEADS * HEAD_DIM, HIDDEN),
            f"{layer}.self_attn.o_proj.weight": matrix(HIDDEN, HEADS * HEAD_DIM),
            f"{layer}.mlp.gate_proj.weight": matrix(INTERMEDIATE, HIDDEN),
            f"{layer}.mlp.up_proj.weight": matrix(INTERMEDIATE, HIDDEN),
            f"{layer}.mlp.down_proj.weight": matrix(HIDDEN, INTERMEDIATE),
        }
    return weights


def _documents(vocabulary: int, end_id: int) -> dict[str, object]:
    """Every JSON file beside the tokenizer, by its name in the folder."""
    modules = [("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize")]
    return {
        "config.json": _config(vocabulary, end_id),
        "tokenizer_config.json": {
            # transformers' Qwen2Tokenizer would rebuild the tokenizer with a pre-tokenizer of its own.
            "tokenizer_class": "PreTrainedTokenizerFast",
            "pad_token": END,
            "eos_token": EOS,
            "model_max_length": MAX_TOKENS,
            "clean_up_tokenization_spaces": False,
        },
        "modules.json": [
            {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
            for i, (path, kind) in enumerate(modules)
        ],
        "1_Pooling/config.json": {
            "word_embedding_dimension": HIDDEN,
            "pooling_mode_cls_token": False,
            "pooling_mode_mean_tokens": False,
            "pooling_mode_lasttoken": True,
            "include_prompt": True,
        },
        "2_Normalize/config.json": {},
        "config_sentence_transformers.json": {
            "prompts": {"query": QUERY_PROMPT, "document": ""},
            "default_prompt_name": None,
            "similarity_fn_name": "cosine",
        },
        "sentence_bert_config.json": {"max_seq_length": MAX_TOKENS, "do_lower_case": False},
    }


def _config(vocabulary: int, end_id: int) -> dict[str, object]:
    return {
        "architectures": ["Qwen3Model"],
        "model_type": "qwen3",
        "vocab_size": vocabulary,
        "hidden_size": HIDDEN,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "head_dim": HEAD_DIM,
        "intermediate_size": INTERMEDIATE,
        "max_position_embeddings": MAX_TOKENS,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-6,
        "rope_theta": 1_000_000,
        "attention_bias": False,
        "attention_dropout": 0.0,
        "tie_word_embeddings": True,
        "use_sliding_window": False,
        "bos_token_id": end_id,
        "eos_token_id": end_id,
        "pad_token_id": end_id,
        "is_matryoshka": True,
        "torch_dtype": "float32",
    }
