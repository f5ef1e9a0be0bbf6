"""Metrics against examples worked by hand, and against libraries."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedfleet import quality
from embedfleet.errors import ConfigurationError
from embedfleet.quality import Nearest, as_written, retrieval, spearman


def at_angles(*degrees: float) -> np.ndarray:
    return np.array([[math.cos(math.radians(each)), math.sin(math.radians(each))] for each in degrees], np.float32)


def test_spearman_by_hand() -> None:
    """Cosines of 0°, 60°, 30°, 90° fall in the order 1, 3, 2, 4; d² = 0, 1, 1, 0, so 1 - 6·2 / (4·15) = 0.8."""
    assert spearman(at_angles(0, 0, 0, 0), at_angles(0, 60, 30, 90), [4, 3, 2, 1]) == pytest.approx(0.8)
    assert spearman(at_angles(0, 0, 0, 0), at_angles(0, 30, 60, 90), [9, 5, 4, 1]) == pytest.approx(1)
    assert spearman(at_angles(0, 0, 0, 0), at_angles(90, 60, 30, 0), [9, 5, 4, 1]) == pytest.approx(-1)


def test_ties_get_mean_ranks() -> None:
    """Labels 1, 1, 2 have ranks 1.5, 1.5, 3; with cosine ranks 1, 2, 3 that is Pearson's 1.5 / √(2 · 1.5)."""
    assert spearman(at_angles(0, 0, 0), at_angles(90, 60, 30), [1, 1, 2]) == pytest.approx(1.5 / math.sqrt(3))


def test_spearman_is_of_the_cosine_not_of_the_dot_product() -> None:
    left, right = at_angles(0, 0, 0), at_angles(0, 30, 60) * np.array([[1], [9], [90]], np.float32)
    assert spearman(left, right, [3, 2, 1]) == pytest.approx(1)


def test_what_float32_cant_tell_apart_is_a_tie() -> None:
    one = np.random.default_rng(0).normal(size=(2, 384)).astype(np.float32)
    assert spearman(one, one, [1, 2]) is None, "both cosines are 1, but for rounding"


@pytest.mark.parametrize("labels", [[1, 1, 1], [1]])
def test_spearman_without_an_order_is_undefined(labels: list[float]) -> None:
    assert spearman(at_angles(*([0] * len(labels))), at_angles(0, 30, 60)[: len(labels)], labels) is None


def test_ndcg_and_recall_by_hand() -> None:
    """Grades 1, 0, 2 in this order, and a 1 that is not found: DCG 1 + 2/2, ideal 2 + 1/log₂3 + 1/2."""
    measured = retrieval({"q": [4, 5, 6]}, {"q": {4: 1, 6: 2, 9: 1}}, [1, 3])
    assert measured["ndcg@10"] == pytest.approx(2 / (2 + 1 / math.log2(3) + 0.5))
    assert measured["recall@1"] == pytest.approx(1 / 3)
    assert measured["recall@3"] == pytest.approx(2 / 3)


def test_a_query_that_found_nothing_counts() -> None:
    measured = retrieval({"a": [1], "b": []}, {"a": {1: 1}, "b": {1: 1}, "c": {1: 1}}, [10])
    assert measured == {"ndcg@10": pytest.approx(1 / 3), "recall@10": pytest.approx(1 / 3)}


def test_beyond_the_tenth_counts_for_recall_only() -> None:
    measured = retrieval({"q": list(range(20))}, {"q": {10: 1}}, [10, 20])
    assert measured == {"ndcg@10": 0, "recall@10": 0, "recall@20": 1}


@given(st.integers(0, 2**32 - 1), st.integers(1, 40), st.integers(1, 12), st.integers(1, 15))
def test_nearest_in_blocks_is_a_sort_of_everything(seed: int, documents: int, keep: int, block: int) -> None:
    """Few values, so that many scores are equal: of these the earlier document comes first."""
    random = np.random.default_rng(seed)
    corpus, queries = random.integers(1, 3, (documents, 2)), random.integers(1, 3, (5, 2))
    nearest = Nearest(queries, keep)
    for first in range(0, documents, block):
        nearest.add(corpus[first : first + block])
    expected = Nearest(queries, documents)
    expected.add(corpus)
    assert nearest.rows.tolist() == expected.rows[:, :keep].tolist()
    unit = corpus / np.linalg.norm(corpus, axis=1, keepdims=True)
    cosines = (queries / np.linalg.norm(queries, axis=1, keepdims=True)) @ unit.T
    assert np.allclose(np.take_along_axis(cosines, nearest.rows, axis=1), -np.sort(-cosines, axis=1)[:, :keep])
    for row, scores in zip(nearest.rows, nearest.scores, strict=True):
        for (one, score), (other, same) in zip(
            zip(row, scores, strict=True), zip(row[1:], scores[1:], strict=True), strict=False
        ):
            assert score > same or one < other


@given(st.integers(0, 2**32 - 1))
def test_ndcg_is_scikit_learns(seed: int) -> None:
    from sklearn.metrics import ndcg_score

    random = np.random.default_rng(seed)
    grades = random.integers(0, 4, 30)
    grades[0] = 1
    order = random.permutation(30).tolist()
    scores = np.zeros(30)
    scores[order] = np.arange(30, 0, -1)
    relevant = {row: int(grade) for row, grade in enumerate(grades) if grade}
    measured = retrieval({"q": order}, {"q": relevant}, [10])
    assert measured["ndcg@10"] == pytest.approx(ndcg_score([grades], [scores], k=10))
    assert measured["recall@10"] == pytest.approx(sum(row in relevant for row in order[:10]) / len(relevant))


def test_cut_vectors_are_of_unit_norm_and_the_whole_is_left_alone() -> None:
    full = at_angles(10, 20, 80)
    assert as_written(full, 2, "float32").tobytes() == full.tobytes()
    assert np.allclose(as_written(full, 1, "float32"), 1)
    assert as_written(full, 2, "float16").dtype == np.float16


def test_without_the_extra_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quality, "find_spec", lambda _: None)
    with pytest.raises(ConfigurationError, match=r'scipy not installed.*pip install "embedfleet\[eval\]"'):
        quality.need("scipy")
