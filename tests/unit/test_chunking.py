"""Chunks by real tokenizers: none over its limit, offsets give back the text, nothing left out, overlap as asked."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.processors import TemplateProcessing
from tokenizers.trainers import BpeTrainer

from embedfleet.contract import Chunking, EmbedSettings
from embedfleet.errors import SettingsError
from embedfleet.models import DEFAULT_MODEL, ModelProfile, profile_of, resolve
from embedfleet_worker import chunking as limits
from embedfleet_worker.chunking import Chunker
from embedfleet_worker.engine.base import Tokens
from embedfleet_worker.tokens import Tokeniser
from embedfleet_worker.work import Piece, Problem, Work

LONG = "The quick brown fox jumps over the lazy dog. "


class Tokenising:
    """Of an engine, what makes chunks: a model's own tokenizer."""

    def __init__(self, folder: Path, max_tokens: int) -> None:
        self.max_tokens = max_tokens
        self._tokeniser = Tokeniser(folder, max_tokens)
        self.starts = self._tokeniser.starts

    def tokenise(self, prompts: Sequence[str], *, truncate: bool, max_tokens: int | None = None) -> list[Tokens]:
        return self._tokeniser.encode(prompts, truncate=truncate, max_tokens=max_tokens)


@dataclass
class Model:
    engine: Any
    profile: ModelProfile
    input_type: str

    def settings(self, **chunking: Any) -> EmbedSettings:
        how = EmbedSettings(
            model=self.profile.name, input_type=self.input_type, on_overflow="chunk", chunking=Chunking(**chunking)
        )
        return resolve(how, self.profile.name)

    def cut(self, texts: Sequence[str], how: EmbedSettings, *, alone: bool = False) -> Work:
        work = Work([str(row) for row in range(len(texts))], texts, {})
        Chunker(self.engine, self.profile, how).cut(work, alone=alone)
        return work

    def pieces(self, text: str, **chunking: Any) -> list[Piece]:
        work = self.cut([text], self.settings(**chunking))
        assert not work.wrong
        return work.pieces[0]

    def wrong(self, text: str, **chunking: Any) -> Problem:
        return self.cut([text], self.settings(**chunking)).wrong[0]

    def tokens(self, prompt: str) -> int:
        """Special tokens included."""
        return self.engine.tokenise([prompt], truncate=True)[0].tokens_in  # type: ignore[no-any-return]

    def bare(self, text: str) -> int:
        return len(self.engine.starts(text))


@pytest.fixture(scope="module")
def bert(minilm: Path) -> Model:
    return Model(Tokenising(minilm, 256), profile_of(DEFAULT_MODEL), "document")


@pytest.fixture(scope="module")
def qwen(tiny_qwen3: Path) -> Model:
    """With an instruction in front of every chunk."""
    return Model(Tokenising(tiny_qwen3, 512), profile_of(str(tiny_qwen3)), "query")


@pytest.fixture(scope="module")
def merging(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """Words have one token behind a blank and several elsewhere, so that a chunk has more than its text had there."""
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
    trainer = BpeTrainer(
        vocab_size=400, initial_alphabet=ByteLevel.alphabet(), special_tokens=["<end>"], show_progress=False
    )
    tokenizer.train_from_iterator([LONG * 9], trainer)
    end = tokenizer.token_to_id("<end>")
    tokenizer.post_processor = TemplateProcessing(single="$A <end>", special_tokens=[("<end>", end)])
    folder = tmp_path_factory.mktemp("merging")
    tokenizer.save(str(folder / "tokenizer.json"))
    return Model(Tokenising(folder, 256), profile_of(DEFAULT_MODEL), "document")


@pytest.fixture(params=["bert", "qwen", "merging"])
def model(request: pytest.FixtureRequest) -> Model:
    found: Model = request.getfixturevalue(request.param)
    return found


def check(model: Model, text: str, room: int, overlap: int) -> list[Piece]:
    """What holds of every text's chunks; returns them."""
    max_tokens = model.tokens(prompt_of(model, "")) + room
    pieces = model.pieces(text, max_tokens=max_tokens, overlap=overlap)
    covered = 0
    for number, (prompt, start, end) in enumerate(pieces):
        assert start is not None
        assert end is not None
        assert prompt == prompt_of(model, text[start:end]), "offsets give back the text"
        assert model.tokens(prompt) <= max_tokens
        assert not text[covered:start].strip(), "only blanks are left out"
        assert end > covered, "each goes further than the one before"
        if number:
            assert model.bare(text[start:covered]) <= overlap
        if (start, end) != (0, len(text)):
            assert text[start:end] == text[start:end].strip()
        covered = end
    assert not text[covered:].strip()
    if model.tokens(prompt_of(model, text)) <= max_tokens:
        assert [piece[1:] for piece in pieces] == [(0, len(text))], "a text that fits is left as it is"
    return pieces


def prompt_of(model: Model, text: str) -> str:
    how = model.settings()
    return model.profile.template(how.input_type).format(text=text, instruction=how.instruction)


TEXTS = {
    "sentences": LONG * 12,
    "no end": "word " * 200,
    "emoji": "👩‍👩‍👧‍👦👍🏽🇨🇭" * 60,
    "CJK": "吾輩は猫である。名前はまだ無い。どこで生れたかとんと見当がつかぬ。" * 8,
    "CJK, no sentences": "漢字仮名交じり文" * 40,
    "right to left": "هذا نص طويل إلى حد ما؟ نعم، إنه كذلك. " * 15,
    "Hebrew with points": "בְּרֵאשִׁית בָּרָא אֱלֹהִים " * 15,
    "one giant word": "x" * 3000,
    "a word that is no word": "qzx" * 700,
    "a giant word between others": "a few words " * 10 + "q" * 500 + " and some more" * 20,
    "combining marks": "e\u0301a\u0308\u0323o\u0302 " * 120,
    "one letter, many marks": "a" + "\u0301" * 800,
    "blank lines": "one\n\n\n two \t\n\nthree " * 60,
    "blanks": " " * 500 + "word " * 300 + "\n" * 500,
    "dots": "." * 2000,
    "ligature": "\ufdfa" * 100,
    "code": "def f(x):\n    return {'a': [x ** 2 for _ in range(10)]}\n\n" * 20,
    "special tokens": "[SEP] <|endoftext|> [CLS] " * 60,
    "control characters": "a\x00b\x07\u200b\ufeff" * 200,
}


@pytest.mark.parametrize("room", [24, 61])
@pytest.mark.parametrize("name", TEXTS)
def test_any_script_is_cut_within_the_limit_and_nothing_is_left_out(model: Model, name: str, room: int) -> None:
    assert len(check(model, TEXTS[name], room, room // 3)) >= 1
    check(model, TEXTS[name], room, 0)


LATIN = ["a", "word", "longer words", ". ", "! ", "\n\n", " ", "\t", "é", "e\u0301", "x" * 120, "-", "…”", "[SEP]", "½"]
WORDS = st.sampled_from([*LATIN, "漢字", "。", "👍🏽", "👩‍👩‍👧‍👦", "שלום", "مرحبا", "\x00", "\ufdfa"])
SOME_TEXT = st.lists(WORDS | st.text(st.characters(exclude_categories=["Cs"]), max_size=6), max_size=120)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    text=SOME_TEXT.map("".join).filter(str.strip),
    room=st.integers(24, 80),
    overlap=st.integers(0, 40),
)
def test_whatever_the_text_its_chunks_hold_to_what_was_asked(model: Model, text: str, room: int, overlap: int) -> None:
    check(model, text, room, min(overlap, room // 2))


@pytest.mark.parametrize("model", ["bert", "qwen"], indirect=True)
@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(words=st.lists(st.sampled_from(["one", "two", "three"]), min_size=100, max_size=200), overlap=st.integers(4, 16))
def test_plain_words_overlap_by_just_what_was_asked(model: Model, words: list[str], overlap: int) -> None:
    text = " ".join(words)
    pieces = check(model, text, 32, overlap)
    for before, after in itertools.pairwise(pieces):
        repeated = model.bare(text[after.start : before.end])
        longest = max(model.bare(" " + word) for word in ("one", "two", "three"))
        assert overlap - longest < repeated <= overlap


def test_a_chunk_ends_with_a_sentence_where_one_ends_in_its_second_half(bert: Model) -> None:
    text = LONG * 12
    for piece in check(bert, text, 50, 0):
        assert text[piece.start : piece.end].endswith("dog.")
    overlapping = check(bert, text, 50, 20)
    assert all(text[piece.start : piece.end].startswith("The quick") for piece in overlapping)
    assert all(before.end > after.start for before, after in itertools.pairwise(overlapping))


@pytest.mark.parametrize(
    "text",
    [
        "Er sagte nichts! „Warum?“ fragte sie. " * 10,
        "吾輩は猫である。名前はまだ無い。" * 12,
        "यह एक वाक्य है। यह दूसरा है। " * 12,
        "a paragraph\n\nand another of some words\n\n" * 12,
    ],
)
def test_sentences_of_other_languages_are_seen_too(bert: Model, text: str) -> None:
    for piece in check(bert, text, 60, 0):
        assert text[: piece.end].endswith(("!", "?“", ".", "。", "।", "paragraph", "words"))


def test_an_abbreviation_ends_no_sentence(bert: Model) -> None:
    text = "word " * 25 + "e.g. " + "word " * 40
    (first, *_) = check(bert, text, 40, 0)
    assert bert.tokens(first.prompt) == 42


@pytest.mark.parametrize(("room", "overlap"), [(31, 0), (32, 13), (44, 20)])
def test_without_a_sentence_it_ends_behind_a_word_and_else_between_characters(
    qwen: Model, room: int, overlap: int
) -> None:
    text = "several words " * 40
    for _, start, end in check(qwen, text, room, overlap):
        assert set(text[start:end].split()) == {"several", "words"}
    marked = "q\u0323\u0307" * 90
    for _, start, end in check(qwen, marked, room, overlap):
        assert start is not None
        assert end is not None
        assert marked[start] == (marked + "q")[end] == "q", "a letter keeps its marks"


def test_a_text_at_the_limit_is_one_chunk_and_one_over_it_is_two(qwen: Model) -> None:
    limit = qwen.tokens(prompt_of(qwen, "x" * 100))
    assert len(qwen.pieces("x" * 100, max_tokens=limit)) == 1
    two = qwen.pieces("x" * 101, max_tokens=limit)
    assert [piece[1:] for piece in two] == [(0, 100), (100, 101)]


def test_chunks_are_as_long_as_the_model_allows_unless_they_are_to_be_shorter(bert: Model) -> None:
    text = "word " * 600
    assert [bert.tokens(piece.prompt) for piece in bert.pieces(text)] == [256, 256, 94]


def test_a_chunk_that_has_more_tokens_than_its_text_had_there_is_made_shorter(merging: Model) -> None:
    text = LONG * 12
    assert merging.bare("over") > merging.bare(" over") == 1
    room = merging.bare(" quick brown")
    assert merging.bare("quick brown") > room
    check(merging, text, 16, 0)
    check(merging, text, 17, 5)
    check(merging, " over" * 200, 9, 4)


# What can't be cut


def test_a_character_of_more_tokens_than_a_chunk_holds_is_that_texts_error(qwen: Model) -> None:
    text = "a few words " * 9 + "\ufdfa"

    class Heavy:
        max_tokens = 16

        def tokenise(self, prompts: Sequence[str], *, truncate: bool, max_tokens: int = 16) -> list[Tokens]:
            del truncate
            counts = [len(prompt.split()) + 1 + 20 * prompt.count("\ufdfa") for prompt in prompts]
            return [
                Tokens(p, [], n, too_long=n if n > max_tokens else None) for p, n in zip(prompts, counts, strict=True)
            ]

        starts = staticmethod(qwen.engine.starts)

    heavy = Model(Heavy(), profile_of(DEFAULT_MODEL), "document")
    code, said = heavy.wrong(text)
    assert (code, said) == ("too_long", "character 108 alone has more tokens than there is room for in a chunk of 16")


def test_a_text_of_too_many_chunks_or_tokens_is_its_own_error(bert: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_CHUNKS", 5)
    assert len(bert.pieces("word " * 100, max_tokens=22)) == 5
    assert "more than 5 chunks" in bert.wrong("word " * 100, max_tokens=22, overlap=10)[1]
    code, said = bert.wrong("word " * 101, max_tokens=22)
    assert code == "too_long"
    assert said.startswith("it would be more than 5 chunks of 22 tokens: take larger ones")
    monkeypatch.setattr(limits, "MAX_TOKENS_IN", 90)
    assert bert.wrong("word " * 100, max_tokens=22)[1].startswith("102 tokens, and of a text of more than 90")


def test_a_megabyte_is_cut_in_time_that_grows_with_it(bert: Model) -> None:
    for text in ("." * 100_000, "a" * 100_000, "漢" * 30_000, "a " * 50_000, "\n" * 100_000 + "a " * 600):
        assert check(bert, text, 250, 8)


# Settings


def refusal(model: Model, **chunking: Any) -> str:
    with pytest.raises(SettingsError) as refused:
        model.pieces("a text", **chunking)
    return str(refused.value)


def test_what_the_model_has_no_room_for_is_refused_naming_what_it_has(bert: Model) -> None:
    assert "chunking.max_tokens=257: the limit of" in refusal(bert, max_tokens=257)
    assert refusal(bert, max_tokens=9) == (
        "chunking.max_tokens=9: 2 of them are the prompt and special tokens, which leaves too little room for text. "
        "Take 10 or more, or a shorter instruction."
    )
    assert refusal(bert, max_tokens=42, overlap=21) == (
        "chunking.overlap=21: a chunk has room for 41 tokens of text at most, and repeats no more than half of that. "
        "Take 20 or less."
    )
    odd = resolve(bert.settings(max_tokens=43, overlap=20), bert.profile.name)
    assert odd.chunking == Chunking(max_tokens=43, overlap=20)
    with pytest.raises(SettingsError, match="Take 20 or less"):  # by the tokenizer, which knows of the second one
        bert.cut(["a"], odd.model_copy(update={"chunking": Chunking(max_tokens=42, overlap=21)}))


def test_an_instruction_that_leaves_a_chunk_no_room_is_refused_by_the_real_tokens(qwen: Model) -> None:
    said = refusal(qwen, max_tokens=30)
    assert "30: " in said
    assert "of them are the prompt and special tokens" in said
