"""Token ids: the right end token also after truncation, limits kept, counts right."""

import json
import shutil
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import NormalizedString, Tokenizer

from embedfleet.errors import ConfigurationError, EngineFailed
from embedfleet_worker import tokens as tokens_module
from embedfleet_worker.tokens import Tokeniser

LONG = "the thin inn " * 400


@pytest.fixture(scope="module")
def raw_qwen(tiny_qwen3: Path) -> Tokenizer:
    return Tokenizer.from_file(str(tiny_qwen3 / "tokenizer.json"))


@pytest.fixture(scope="module")
def end_of_text(raw_qwen: Tokenizer) -> int:
    """The token the model's last-token pooling reads; its tokenizer's eos token is another one."""
    end: int = raw_qwen.token_to_id("<|endoftext|>")
    assert end != raw_qwen.token_to_id("<|im_end|>")
    return end


def test_a_text_gets_its_tokens_and_the_end_token(tiny_qwen3: Path, raw_qwen: Tokenizer, end_of_text: int) -> None:
    (tokens,) = Tokeniser(tiny_qwen3, 512).encode(["the inn"], truncate=False)
    assert tokens.ids == raw_qwen.encode("the inn").ids
    assert tokens.ids[-1] == end_of_text
    assert (tokens.prompt, tokens.count, tokens.truncated, tokens.too_long) == ("the inn", len(tokens.ids), False, None)


@pytest.mark.parametrize("limit", [8, 9, 100, 511])
def test_truncation_keeps_the_beginning_and_the_end_token(
    tiny_qwen3: Path, raw_qwen: Tokenizer, end_of_text: int, limit: int
) -> None:
    (tokens,) = Tokeniser(tiny_qwen3, limit).encode([LONG], truncate=True)
    assert tokens.count == len(tokens.ids) == limit
    assert tokens.ids[-1] == end_of_text
    assert tokens.ids[:-1] == raw_qwen.encode(LONG).ids[: limit - 1]
    assert (tokens.truncated, tokens.too_long) == (True, None)


@pytest.mark.parametrize("limit", [8, 128, 256])
def test_minilm_keeps_both_its_special_tokens(minilm: Path, limit: int) -> None:
    raw = Tokenizer.from_file(str(minilm / "tokenizer.json"))
    begin, end = raw.token_to_id("[CLS]"), raw.token_to_id("[SEP]")
    (tokens,) = Tokeniser(minilm, limit).encode([LONG], truncate=True)
    assert len(tokens.ids) == limit
    assert (tokens.ids[0], tokens.ids[-1]) == (begin, end)
    assert end not in tokens.ids[:-1]


def test_the_limits_and_padding_of_the_file_do_not_count(minilm: Path) -> None:
    """all-MiniLM's tokenizer.json truncates at 128 and pads; its limit is 256."""
    own = json.loads((minilm / "tokenizer.json").read_text(encoding="utf-8"))
    assert own["truncation"]["max_length"] == 128
    short, long = Tokeniser(minilm, 256).encode(["inn", "inn " * 200], truncate=False)
    assert (short.count, long.count) == (3, 202)


def test_a_file_that_truncates_on_the_left_is_truncated_on_the_right(
    tiny_qwen3: Path, tmp_path: Path, raw_qwen: Tokenizer
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_qwen3, folder)
    other = Tokenizer.from_file(str(folder / "tokenizer.json"))
    other.enable_truncation(64, direction="left")
    other.save(str(folder / "tokenizer.json"))
    (tokens,) = Tokeniser(folder, 16).encode(["abcdefgh" * 10], truncate=True)
    assert tokens.ids[:-1] == raw_qwen.encode("abcdefgh" * 10).ids[:15]


def test_exactly_the_limit_fits(tiny_qwen3: Path) -> None:
    tokeniser = Tokeniser(tiny_qwen3, 16)
    fits, one_more = tokeniser.encode(["x" * 15, "x" * 16], truncate=False)
    assert (fits.count, fits.too_long, fits.truncated) == (16, None, False)
    assert (one_more.count, one_more.too_long, one_more.ids) == (17, 17, [])
    assert [tokens.truncated for tokens in tokeniser.encode(["x" * 15, "x" * 16], truncate=True)] == [False, True]


def test_a_lower_limit_can_be_asked_for_and_a_higher_one_can_not(tiny_qwen3: Path) -> None:
    tokeniser = Tokeniser(tiny_qwen3, 16)
    for asked, limit in ((None, 16), (8, 8), (99, 16)):
        fits, one_more = tokeniser.encode(["x" * (limit - 1), "x" * limit], truncate=False, max_tokens=asked)
        assert (fits.too_long, one_more.too_long) == (None, limit + 1)


@pytest.mark.parametrize("truncate", [False, True])
def test_it_says_how_many_tokens_went_in_and_how_many_are_used(tiny_qwen3: Path, truncate: bool) -> None:
    short, long = Tokeniser(tiny_qwen3, 16).encode(["x" * 10, "x" * 99], truncate=truncate)
    assert (short.tokens_in, short.count) == (11, 11)
    assert (long.tokens_in, len(long.ids)) == (100, 16 if truncate else 0)


@pytest.mark.parametrize("piece", [7, 64, 65_536])
def test_where_tokens_begin_is_said_in_code_points_and_ascends(
    minilm: Path, tiny_qwen3: Path, monkeypatch: pytest.MonkeyPatch, piece: int
) -> None:
    """Of a long text piece by piece: at the borders of the pieces tokens may be other ones."""
    text = "Straße – 東京 😀 e\u0301 בְּרֵאשִׁית and plain words " * 5
    monkeypatch.setattr(tokens_module, "_PIECE", piece)
    for folder in (minilm, tiny_qwen3):
        raw = Tokenizer.from_file(str(folder / "tokenizer.json"))
        raw.no_truncation()
        raw.no_padding()
        expected = [start for start, _ in raw.encode(text, add_special_tokens=False).offsets]
        found = list(Tokeniser(folder, 64).starts(text))
        assert found == sorted(found)
        if piece > len(text):
            assert found == sorted(expected)


def test_a_text_in_the_middle_of_a_batch_is_tokenised_as_alone(minilm: Path) -> None:
    texts = ["a", LONG, "", "東京 😀", "Straße"]
    for truncate in (False, True):
        tokeniser = Tokeniser(minilm, 64)
        together = tokeniser.encode(texts, truncate=truncate)
        assert together == [tokeniser.encode([text], truncate=truncate)[0] for text in texts]


def test_the_spelling_of_a_special_token_in_a_text_does_not_end_it_twice(tiny_qwen3: Path, end_of_text: int) -> None:
    (tokens,) = Tokeniser(tiny_qwen3, 16).encode(["a<|endoftext|>b" * 20], truncate=True)
    assert len(tokens.ids) == 16
    assert tokens.ids[-1] == end_of_text


@settings(deadline=None, max_examples=60)
@given(text=st.text(max_size=60), limit=st.integers(8, 24), truncate=st.booleans())
def test_whatever_the_text_the_limit_holds_and_the_count_is_that_of_the_whole(
    tiny_qwen3: Path, raw_qwen: Tokenizer, end_of_text: int, text: str, limit: int, truncate: bool
) -> None:
    whole = raw_qwen.encode(text).ids
    (tokens,) = Tokeniser(tiny_qwen3, limit).encode([text], truncate=truncate)
    if len(whole) <= limit:
        assert (tokens.ids, tokens.count, tokens.truncated, tokens.too_long) == (whole, len(whole), False, None)
    elif truncate:
        assert (tokens.count, len(tokens.ids), tokens.ids[-1]) == (limit, limit, end_of_text)
        assert tokens.truncated
    else:
        assert tokens.too_long == tokens.count == len(whole)


def test_a_folder_without_a_fast_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"it has no tokenizer.json. Save it with a fast tokenizer"):
        Tokeniser(tmp_path, 16)


def test_a_tokenizer_that_panics_is_a_failure_that_can_be_handled(
    tiny_qwen3: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A panic of Rust code is no Exception; nothing would answer for the batch."""

    class Panicking:
        def encode_batch_fast(self, _: list[str]) -> None:
            NormalizedString("a").filter(lambda _: 1 / 0)

    tokeniser = Tokeniser(tiny_qwen3, 512)
    monkeypatch.setattr(tokeniser, "_whole", Panicking())
    with pytest.raises(EngineFailed, match="panicked"):
        tokeniser.encode(["a"], truncate=False)


def test_what_must_end_the_process_is_no_panic(tiny_qwen3: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Ending:
        def encode_batch_fast(self, _: list[str]) -> None:
            raise SystemExit

    tokeniser = Tokeniser(tiny_qwen3, 512)
    monkeypatch.setattr(tokeniser, "_whole", Ending())
    with pytest.raises(SystemExit):
        tokeniser.encode(["a"], truncate=False)
