"""Texts to the chunks that a task wants of them, by the engine's own tokens. Where they are cut is in splitting.py.

Every chunk was tokenised with its prompt before it is one, so none is over its limit.
"""

from collections.abc import Sequence

from embedfleet.chunking import check_chunking
from embedfleet.contract import Chunking, EmbedSettings
from embedfleet.errors import EngineFailed
from embedfleet.models import ModelProfile
from embedfleet.splitting import Oversize, Splitter
from embedfleet_worker.engine.base import Engine
from embedfleet_worker.prompts import render
from embedfleet_worker.tokenising import prompt_tokens, starts, tokenise
from embedfleet_worker.work import Piece, Problem, Work

MAX_TOKENS_IN = 1_048_576
"""Of a text that is cut: 4 MB of English. More would hold its worker for as long as sixteen batches."""
MAX_CHUNKS = 8192
"""Of a text: their vectors are in memory together, 128 MB of a model with 4096 dimensions."""


class Chunker:
    """Of one batch. ``prompt_tokens``: what every chunk has beside its text."""

    def __init__(self, engine: Engine, profile: ModelProfile, settings: EmbedSettings) -> None:
        """Raises SettingsError for what this engine can't do."""
        chunking = settings.chunking or Chunking()
        self.prompt_tokens = prompt_tokens(engine, settings, profile)
        check_chunking(chunking, engine.max_tokens, self.prompt_tokens, f"{profile.name} here")
        self._engine = engine
        self._profile = profile
        self._settings = settings
        self._max_tokens = chunking.max_tokens or engine.max_tokens
        self._overlap = chunking.overlap

    def cut(self, work: Work, *, alone: bool) -> None:
        """Give each text of the batch its pieces, or what is wrong with it. Raises EngineFailed.

        ``alone``: nothing else is to blame. What the tokenizer fails at is then an error of that text.
        """
        rows = {text: row for row, text in enumerate(work.texts) if row not in work.wrong and text is not None}
        failed: dict[str, EngineFailed] = {}
        for texts in [[text] for text in rows] if alone else [list(rows)]:
            try:
                self._cut(work, texts, rows)
            except EngineFailed as exc:
                if not alone:
                    raise
                failed[texts[0]] = exc
        if len(failed) == len(rows) > 1:
            raise next(iter(failed.values()))  # it is the tokenizer: it does none of them
        for bad, failure in failed.items():
            work.wrong[rows[bad]] = "engine_error", f"the engine fails at this text ({failure})"
        for row, text in enumerate(work.texts):  # the others of the same text
            if row not in work.wrong and row not in work.pieces and text is not None:
                self._copy(work, rows[text], row)

    def _cut(self, work: Work, texts: Sequence[str], rows: dict[str, int]) -> None:
        prompts = [self._render(text) for text in texts]
        found = tokenise(self._engine, prompts, max_tokens=self._max_tokens)
        for text, tokens in zip(texts, found, strict=True):
            row = rows[text]
            if tokens.too_long is None:
                work.ready[tokens.prompt] = tokens
                work.pieces[row] = [Piece(tokens.prompt, 0, len(text))]
                continue
            work.whole[row] = tokens.too_long
            made = self._pieces(work, text, tokens.too_long)
            if isinstance(made, list):
                work.pieces[row] = made
            else:
                work.wrong[row] = made

    def _pieces(self, work: Work, text: str, tokens_in: int) -> list[Piece] | Problem:
        room = self._max_tokens - self.prompt_tokens
        if tokens_in > MAX_TOKENS_IN:
            return "too_long", f"{tokens_in} tokens, and of a text of more than {MAX_TOKENS_IN} no chunks are made"
        if tokens_in - self.prompt_tokens > MAX_CHUNKS * room:
            return self._too_many()
        pieces: list[Piece] = []
        try:
            for begin, end in self._splitter(work, text, room):
                pieces.append(Piece(self._render(text[begin:end]), begin, end))
                if len(pieces) > MAX_CHUNKS:
                    return self._too_many()
        except Oversize as exc:
            said = f"character {exc.position} alone has more tokens than there is room for"
            return "too_long", f"{said} in a chunk of {self._max_tokens}"
        return pieces

    def _splitter(self, work: Work, text: str, room: int) -> Splitter:
        def excess(chunk: str) -> int:
            (tokens,) = tokenise(self._engine, [self._render(chunk)], max_tokens=self._max_tokens)
            if tokens.too_long is not None:
                return tokens.too_long - self._max_tokens
            work.ready[tokens.prompt] = tokens
            return 0

        def count(overlap: str) -> int:
            return len(starts(self._engine, overlap))

        return Splitter(text, starts(self._engine, text), room, self._overlap, excess, count)

    def _copy(self, work: Work, source: int, row: int) -> None:
        if source in work.whole:
            work.whole[row] = work.whole[source]
        if source in work.wrong:
            work.wrong[row] = work.wrong[source]
        else:
            work.pieces[row] = work.pieces[source]

    def _too_many(self) -> Problem:
        said = f"it would be more than {MAX_CHUNKS} chunks of {self._max_tokens} tokens: take larger ones"
        return "too_long", f"{said}, or cut it before it is submitted"

    def _render(self, text: str) -> str:
        return render(text, self._settings, self._profile)
