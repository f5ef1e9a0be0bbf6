"""A BERT model folder as a GGUF file, in float32: what llama.cpp reads. Run by the environment of scripts/interop.

Names of keys and tensors: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md and the package ``gguf``.
Usage: write_gguf.py FOLDER FILE
"""

import json
import sys
from pathlib import Path

import gguf
import numpy as np
from safetensors.numpy import load_file

_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_OF_A_LAYER = {
    "attention.self.query": "attn_q",
    "attention.self.key": "attn_k",
    "attention.self.value": "attn_v",
    "attention.output.dense": "attn_output",
    "attention.output.LayerNorm": "attn_output_norm",
    "intermediate.dense": "ffn_up",
    "output.dense": "ffn_down",
    "output.LayerNorm": "layer_output_norm",
}
_OF_THE_MODEL = {
    "embeddings.word_embeddings.weight": "token_embd.weight",
    "embeddings.position_embeddings.weight": "position_embd.weight",
    "embeddings.token_type_embeddings.weight": "token_types.weight",
    "embeddings.LayerNorm.weight": "token_embd_norm.weight",
    "embeddings.LayerNorm.bias": "token_embd_norm.bias",
}


def write(folder: Path, file: Path) -> None:
    """Weights, shape and vocabulary; mean pooling."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    writer = gguf.GGUFWriter(file, "bert")
    writer.add_name("all-minilm")
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_layer_norm_eps(config["layer_norm_eps"])
    writer.add_causal_attention(False)
    writer.add_pooling_type(gguf.PoolingType.MEAN)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    _add_vocabulary(writer, folder)
    for name, tensor in load_file(folder / "model.safetensors").items():
        if (named := tensor_name(name)) is not None:
            writer.add_tensor(named, np.ascontiguousarray(tensor, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def tensor_name(name: str) -> str | None:
    """A tensor's name in the file; None for what is not in it."""
    if name in _OF_THE_MODEL:
        return _OF_THE_MODEL[name]
    parts = name.split(".")
    if parts[:2] == ["encoder", "layer"]:
        inner, _, kind = ".".join(parts[3:]).rpartition(".")
        return f"blk.{parts[2]}.{_OF_A_LAYER[inner]}.{kind}"
    return None  # position ids, and the pooler, which embeddings do not use


def _add_vocabulary(writer: "gguf.GGUFWriter", folder: Path) -> None:
    """llama.cpp marks beginnings of words, where BERT marks their continuations."""
    vocabulary = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))["model"]["vocab"]
    tokens = sorted(vocabulary, key=lambda token: int(vocabulary[token]))
    writer.add_tokenizer_model("bert")
    writer.add_tokenizer_pre("default")
    writer.add_token_list([token if token in _SPECIAL else _marked(token) for token in tokens])
    kinds = [gguf.TokenType.CONTROL if token in _SPECIAL else gguf.TokenType.NORMAL for token in tokens]
    writer.add_token_types(kinds)
    writer.add_token_type_count(2)
    writer.add_pad_token_id(vocabulary["[PAD]"])
    writer.add_unk_token_id(vocabulary["[UNK]"])
    writer.add_bos_token_id(vocabulary["[CLS]"])  # llama.cpp has one field for both
    writer.add_sep_token_id(vocabulary["[SEP]"])
    writer.add_mask_token_id(vocabulary["[MASK]"])


def _marked(token: str) -> str:
    return token[2:] if token.startswith("##") else f"\u2581{token}"


if __name__ == "__main__":
    write(Path(sys.argv[1]), Path(sys.argv[2]))
