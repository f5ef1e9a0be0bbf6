"""Bad texts, and vectors that the model itself gets wrong, beside right ones. Through the whole path."""

import pytest

from embedfleet import EmbedSettings
from embedfleet.errors import TextError
from tests import tiny_qwen3 as tiny
from tests.vectors.references import Reference, cosines
from tests.vectors.served import Served, vectors

Fleets = dict[tuple[str, str], Served]
LEAST = {"float32": 0.99999, "bfloat16": 0.999}
MARKED = f"a text with {tiny.START}, whose vector is NaN in this model"
BAD: dict[str, tuple[object, str]] = {
    "nothing": ("", "empty"),
    "blanks": (" \t\r\n\u2003\u3000", "empty"),
    "half of a pair": ("a \ud83d face", "lone_surrogate"),
    "other half": ("\udc00", "lone_surrogate"),
    "none": (None, "not_a_string"),
    "integer": (7, "not_a_string"),
    "float": (float("nan"), "not_a_string"),
    "bytes": (b"bytes", "not_a_string"),
    "list": (["a text"], "not_a_string"),
    "too long": ("word " * 500, "too_long"),
    "NaN": (MARKED, "not_finite"),
    "NaN and too long": (MARKED * 100, "too_long"),
}


def test_what_the_model_gets_wrong_is_named_to_a_caller_and_is_not_kept(fleets: Fleets) -> None:
    served = fleets["Qwen3", "float32"]
    served.forget()
    for _ in range(2):
        with pytest.raises(
            TextError, match="text 1 has no vector: not_finite: the engine gave NaN or infinity"
        ) as failed:
            served.fleet.embed(["a text", MARKED, "another text"])
        assert list(failed.value.errors) == [1]
    assert served.cache.dbsize() == 2


@pytest.mark.parametrize("dtype", LEAST)
def test_bad_texts_are_named_and_cost_their_neighbours_nothing(
    dtype: str, fleets: Fleets, references: dict[str, Reference], texts: list[str]
) -> None:
    """Every other text is bad, in the first job and, where nothing is computed for the good ones, in the second."""
    served, reference = fleets["Qwen3", dtype], references["Qwen3"]
    served.forget()
    good = [place for place, tokens in enumerate(reference.tokens) if tokens < 100][: 5 * len(BAD)]
    bad = list(BAD.values()) * 5
    mixed = [each for place, (text, _) in zip(good, bad, strict=True) for each in (texts[place], text)]
    for cached in (False, True):
        table = served.job(list(enumerate(mixed)), EmbedSettings())
        assert table["error"].to_pylist()[1::2] == [code for _, code in bad]
        assert table["embedding"].is_null().to_pylist() == [False, True] * len(bad)
        right = table.take(list(range(0, len(mixed), 2)))
        assert set(right["cached"].to_pylist()) == {cached}
        assert cosines(vectors(right), reference.vectors[good]).min() >= LEAST[dtype]


@pytest.mark.parametrize("dtype", LEAST)
def test_vectors_after_a_nan_are_right(
    dtype: str, fleets: Fleets, references: dict[str, Reference], texts: list[str]
) -> None:
    """Also those of texts that get the NaN's place in the attention cache."""
    served = fleets["Qwen3", dtype]
    marked = served.job([f"{number} {MARKED}" for number in range(200)], EmbedSettings())
    assert set(marked["error"].to_pylist()) == {"not_finite"}
    served.forget()
    found = served.pieces(texts[:120], 40)
    assert cosines(found, references["Qwen3"].vectors[:120]).min() >= LEAST[dtype]
