"""Prompts to token ids, outside the engine, with the model's own tokenizer. Not what a prompt says (prompts.py)."""

import itertools
from array import array
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tokenizers import Encoding, Tokenizer

from embedfleet.errors import ConfigurationError, EngineFailed
from embedfleet_worker.engine.base import Tokens

_PIECE = 16_384  # code points
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

    def encode(self, prompts: Sequence[str], *, truncate: bool, max_tokens: int | None = None) -> list[Tokens]:
        """One Tokens a prompt, in order. Raises EngineFailed when the tokenizer panics, and whatever it raises.

        ``max_tokens``: a lower limit, for prompts that are not to be truncated.
        """
        limit = min(max_tokens or self._max_tokens, self._max_tokens)
        with _panics():
            encodings = self._whole.encode_batch_fast(list(prompts))
            return [self._tokens(p, e, limit, truncate) for p, e in zip(prompts, encodings, strict=True)]

    def starts(self, text: str) -> "array[int]":
        """Where each token of the bare text begins, in code points and in order. Raises as :meth:`encode`."""
        found = array("i")
        begin = 0
        with _panics():
            while begin < len(text):
                end = _piece_end(text, begin)
                offsets = self._whole.encode(text[begin:end], add_special_tokens=False).offsets
                # A normaliser may move a mark before its letter: what is looked up by halves has to ascend.
                found.extend(itertools.accumulate((begin + start for start, _ in offsets), max))
                begin = end
        return found

    def _tokens(self, prompt: str, encoding: Encoding, limit: int, truncate: bool) -> Tokens:
        ids: list[int] = encoding.ids
        if len(ids) <= limit:
            return Tokens(prompt, ids, len(ids))
        if not truncate:
            return Tokens(prompt, [], len(ids), too_long=len(ids))
        cut: list[int] = self._cut.encode(prompt).ids
        return Tokens(prompt, cut, len(cut), truncated=True, tokens_in=len(ids))


def _piece_end(text: str, begin: int) -> int:
    """Where to cut a long text, whose tokens take a hundred times its memory; between words if there are any."""
    end = begin + _PIECE
    if end >= len(text):
        return len(text)
    space = max(text.rfind(" ", begin, end), text.rfind("\n", begin, end))
    return space if space > begin else end


@contextmanager
def _panics() -> Iterator[None]:
    try:
        yield
    except BaseException as exc:
        if type(exc).__name__ != _PANIC:
            raise
        raise EngineFailed("the tokenizer panicked") from None


def _plain(file: Path) -> Tokenizer:
    tokenizer = Tokenizer.from_file(str(file))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer
