"""Real texts, the same on every run: the standard library's docstrings, cut into short and long ones, all different."""

import hashlib
import importlib.util
import itertools
import re
import sysconfig
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

Count = Callable[[str], int]
"""Tokens of a text."""

_COLLECT = Path(__file__).parents[2] / "examples" / "stdlib_search" / "collect.py"
_SHORT_TOKENS = range(9, 49)  # 17 on average: a title, a query, a sentence
_LONG_TOKENS = range(90, 241)  # 184 on average: a paragraph, below the 256 at which all-MiniLM cuts
_LONG_CHARACTERS = 1000
_END_OF_SENTENCE = re.compile(r"(?<=[.!?:])\s|\n\s*\n")


def docstrings(limit: int | None = None) -> list[tuple[str, str]]:
    """(file, docstring) of the first ``limit`` docstrings of this Python's standard library, in a fixed order."""
    spec = importlib.util.spec_from_file_location("stdlib_search_collect", _COLLECT)
    if spec is None or spec.loader is None:
        raise FileNotFoundError(_COLLECT)
    example: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    found = itertools.islice(example.collect(Path(sysconfig.get_path("stdlib"))), limit)
    return [(docstring["file"], docstring["text"].strip()) for docstring in found]


def short_texts(source: list[tuple[str, str]], wanted: int, count: Count) -> list[str]:
    """First sentences."""
    sentences = (" ".join(_END_OF_SENTENCE.split(text, maxsplit=1)[0].split()) for _, text in source)
    return _chosen(sentences, wanted, _SHORT_TOKENS, count)


def long_texts(source: list[tuple[str, str]], wanted: int, count: Count) -> list[str]:
    """Docstrings, and neighbours in one file joined as long as that stays a paragraph."""
    return _chosen(_joined(source), wanted, _LONG_TOKENS, count)


def _joined(source: list[tuple[str, str]]) -> Iterator[str]:
    for _, group in itertools.groupby(source, key=lambda docstring: docstring[0]):
        held = ""
        for _, text in group:
            if held and len(held) + len(text) > _LONG_CHARACTERS:
                yield held
                held = ""
            held = f"{held}\n\n{text}".lstrip()
        yield held


def _chosen(texts: Iterable[str], wanted: int, tokens: range, count: Count) -> list[str]:
    """The first ``wanted`` distinct ones of fitting length, by hash: neighbours in a file do not stay neighbours."""
    ordered = sorted(set(texts), key=lambda text: hashlib.sha256(text.encode("utf-8", "replace")).digest())
    chosen = list(itertools.islice((text for text in ordered if count(text) in tokens), wanted))
    if len(chosen) < wanted:
        raise ValueError(f"only {len(chosen)} texts of {tokens} tokens among the docstrings, {wanted} were wanted.")
    return chosen
