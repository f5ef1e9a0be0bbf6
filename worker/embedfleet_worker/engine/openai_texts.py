"""Prompts as texts that a server's tokenizer neither cuts nor refuses. Not what their tokens are (tokens.py)."""

from array import array
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from tokenizers import Tokenizer

from embedfleet_worker.engine.base import Tokens
from embedfleet_worker.tokens import Tokeniser


class TextTokeniser:
    """Counts with the model's own tokenizer, and cuts between characters: a server takes no part of one.

    The special tokens, the end token among them, are the server's to add: its tokenizer is the model's too.
    """

    def __init__(self, folder: Path, max_tokens: int) -> None:
        self._max_tokens = max_tokens
        self._tokens = Tokeniser(folder, max_tokens)
        self._offsets = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._offsets.no_padding()
        self._offsets.no_truncation()

    def starts(self, text: str) -> "array[int]":
        """As the other's."""
        return self._tokens.starts(text)

    def encode(self, prompts: Sequence[str], *, truncate: bool, max_tokens: int | None = None) -> list[Tokens]:
        """As the other's, with the text of those that were cut. Raises EngineFailed when the tokenizer panics."""
        return [
            self._cut(tokens) if tokens.truncated else tokens
            for tokens in self._tokens.encode(prompts, truncate=truncate, max_tokens=max_tokens)
        ]

    def _cut(self, tokens: Tokens) -> Tokens:
        """The longest beginning, up to the end of a token, that has no more tokens than are allowed.

        What is cut may have more tokens than it had within the whole: a token ends elsewhere, or is part of a
        character. So it is counted anew until it fits.
        """
        whole = self._offsets.encode(tokens.prompt)
        ends = [end for (_, end), special in zip(whole.offsets, whole.special_tokens_mask, strict=True) if not special]
        kept = min(len(ends), self._max_tokens - (len(whole.ids) - len(ends)))
        while kept > 0:
            text = tokens.prompt[: ends[kept - 1]]
            count = len(self._offsets.encode(text).ids)
            if count <= self._max_tokens and text:
                return replace(tokens, ids=[], count=count, text=text)
            kept -= max(1, (count - self._max_tokens) // 4)
        return replace(tokens, ids=[], truncated=False, count=len(whole.ids), too_long=len(whole.ids))
