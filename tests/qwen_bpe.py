"""Qwen's own tokenizer, from the ranks that the package `dashscope` carries. Nothing of the package is run.

Its file holds each token's bytes and rank. A merge's place in the order is its result's rank.
"""

import base64
import os
from importlib.util import find_spec
from pathlib import Path

import pytest
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

END, START, EOS = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
# As in Qwen's tokenizer.json.
_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def ranks() -> dict[bytes, int]:
    """151,643 tokens. Where the package is missing the test is skipped; in CI that is an error."""
    found = find_spec("dashscope")
    if found is None or found.origin is None:
        missing = "Qwen's vocabulary is in the package dashscope, which is not installed"
        pytest.fail(missing, pytrace=False) if os.environ.get("CI") else pytest.skip(missing)
    lines = (Path(found.origin).parent / "resources" / "qwen.tiktoken").read_bytes().splitlines()
    return {base64.b64decode(token): int(rank) for token, rank in map(bytes.split, lines)}


def build() -> Tokenizer:
    """With the template of Qwen3-Embedding, which ends every text with ``<|endoftext|>``. It takes seconds."""
    tokens = ranks()
    shown = _shown()
    vocabulary = {"".join(shown[byte] for byte in token): rank for token, rank in tokens.items()}
    merges = []
    for token in sorted(vocabulary, key=vocabulary.__getitem__):
        pairs = [(token[:at], token[at:]) for at in range(1, len(token))]
        known = [pair for pair in pairs if pair[0] in vocabulary and pair[1] in vocabulary]
        merges += sorted(known, key=lambda pair: (vocabulary[pair[0]], vocabulary[pair[1]]))
    tokenizer = Tokenizer(models.BPE(vocabulary, merges))
    tokenizer.normalizer = normalizers.NFC()
    split = pre_tokenizers.Split(Regex(_PATTERN), "isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in (END, START, EOS)])
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"$A {END}", pair=f"$A {END} $B {END}", special_tokens=[(END, tokenizer.token_to_id(END))]
    )
    return tokenizer


def _shown() -> list[str]:
    """How byte-level BPE writes each byte: printable ones as they are, the others from 256 on."""
    plain = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = iter(range(256, 512))
    return [chr(byte if byte in plain else next(others)) for byte in range(256)]
