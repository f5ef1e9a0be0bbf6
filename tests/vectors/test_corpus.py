"""The texts are those that were meant: real ones, of every kind and length."""

from collections import Counter
from collections.abc import Callable

import pytest

from tests.vectors.corpus import COUNT, LANGUAGES, LONGEST, SHARES, WHOLE, corpus, long_texts, pages, profile


def test_distinct_texts_of_every_kind_and_length(say: Callable[[str], None]) -> None:
    texts = corpus(COUNT)
    say(profile(texts))
    assert len({item.text for item in texts}) == len(texts) == COUNT
    kinds = Counter(item.kind for item in texts)
    missing = {f"manual pages ({language})" for language in LANGUAGES if not pages(language)}
    assert kinds.keys() == {*SHARES, "docstrings"} - missing
    lengths = [len(item.text) for item in texts]
    assert (min(lengths), max(lengths)) == (1, LONGEST)
    assert sum(length > 10_000 for length in lengths) >= SHARES["longest"] * COUNT // WHOLE
    assert all(item.text.strip() for item in texts)


def test_long_texts_are_distinct() -> None:
    texts = long_texts(60)
    assert len(set(texts)) == 60
    assert min(map(len, texts)) > 10_000


@pytest.mark.debian("manpages-de", "/usr/share/man/de/man7/signal.7.gz")
@pytest.mark.debian("manpages-fr", "/usr/share/man/fr/man7/signal.7.gz")
@pytest.mark.debian("manpages-ja", "/usr/share/man/ja/man1/ls.1.gz")
@pytest.mark.debian("manpages-zh", "/usr/share/man/zh_CN/man1/ls.1.gz")
def test_manual_pages_in_each_language() -> None:
    kinds = Counter(item.kind for item in corpus(COUNT))
    for kind in (f"manual pages ({language})" for language in LANGUAGES):
        assert kinds[kind] == SHARES[kind] * COUNT // WHOLE
