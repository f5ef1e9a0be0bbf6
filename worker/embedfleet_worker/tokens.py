"""Prompts to token ids, outside the engine, with the model's own tokenizer. Not what a prompt says (prompts.py)."""

from collections.abc import Sequence
from pathlib import Path

from tokenizers import Encoding, Tokenizer

from embedfleet.errors import ConfigurationError, EngineFailed
from embedfleet_worker.engine.base import Tokens

_PANIC = "PanicException"  # of a Rust extension; no Exception, and there is nothing to import it from


class Tokeniser:
    """The fast tokenizer of a model folder; special tokens as its template says."""

    def __init__(self, folder: Path, max_tokens: int) -> None:
        file = folder / "tokenizer.json"
        if not file.is_file():
            raise ConfigurationError(f"model {folder}: it has no tokenizer.json. Save it with a fast tokenizer.")
        self._max_tokens = max_tokens
        # Files carry padding and truncation of their own (128 in all-MiniLM's, whose limit is 256).
        self._whole = _plain(file)
        self._cut = _plain(file)
        # Cutting through the tokenizer keeps the end token, without which last-token pooling reads another vector.
        self._cut.enable_truncation(max_tokens)

    def encode(self, prompts: Sequence[str], *, truncate: bool) -> list[Tokens]:
        """One Tokens a prompt, in order. Raises EngineFailed when the tokenizer panics, and whatever it raises."""
        try:
            encodings = self._whole.encode_batch_fast(list(prompts))
            return [self._tokens(p, e, truncate) for p, e in zip(prompts, encodings, strict=True)]
        except BaseException as exc:
            if type(exc).__name__ != _PANIC:
                raise
            raise EngineFailed("the tokenizer panicked") from None

    def _tokens(self, prompt: str, encoding: Encoding, truncate: bool) -> Tokens:
        ids: list[int] = encoding.ids
        if len(ids) <= self._max_tokens:
            return Tokens(prompt, ids, len(ids))
        if not truncate:
            return Tokens(prompt, [], len(ids), too_long=len(ids))
        cut: list[int] = self._cut.encode(prompt).ids
        return Tokens(prompt, cut, len(cut), truncated=True)


def _plain(file: Path) -> Tokenizer:
    tokenizer = Tokenizer.from_file(str(file))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer
