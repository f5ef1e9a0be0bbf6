"""Real texts in many languages and lengths, 1 to 40,000 characters, the same ones on every run. Not their vectors.

Sources are on every machine that can run the tests: Python's standard library, the translations in Django, the
character database. Debian's manual pages (packages manpages-de, -fr, -ja, -zh; see ci/apt.txt) are taken where they
are installed, below the first folder of MANPATH or in /usr/share/man; without them there are more docstrings.
"""

import ast
import functools
import gettext
import gzip
import itertools
import os
import random
import re
import sysconfig
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import django

from examples.stdlib_search.collect import collect, sources

WHOLE = 2000
COUNT = int(os.environ.get("VECTORS_TEXTS", "300"))
"""How many texts this run takes: ``make vectors`` all, ``make test`` a smaller choice of the same kinds."""
LONGEST = 40_000
LANGUAGES = {"de": "manpages-de", "fr": "manpages-fr", "ja": "manpages-ja", "zh_CN": "manpages-zh"}
"""Folders of manual pages, with the package that brings each."""
SHARES = {
    **{f"manual pages ({language})": 120 for language in LANGUAGES},
    "code": 180,
    "right to left": 180,
    "Chinese, Japanese, Korean": 160,
    "other scripts": 160,
    "emoji": 100,
    "one character": 40,
    "odd characters": 30,
    "longest": 30,
}
"""How many of the 2,000 texts are of which kind; the rest are docstrings."""

_RIGHT_TO_LEFT, _CJK = ("ar", "fa", "he", "ur"), ("ja", "ko", "zh_Hans", "zh_Hant")
_OTHER = ("ru", "el", "hi", "th", "bn", "ka", "ta", "am", "km", "hy", "vi", "tr")
_ODD = (
    "e\u0301 and é, ﬁ and fi, Å and Å",  # composed and not
    "zero\u200bwidth\u200djoiner\ufeffmark",
    "a\x00null, a\x07bell, a\x1bescape, a\x7fdelete",
    "\u202eright to left override\u202c and \u2066isolate\u2069",
    "\t tabs\tand\r\nline\vends\fof\x85every\u2028kind\u2029",
    "  blanks before and behind   ",
    "\U0010ffff\U000e0041\ue000 private and not assigned",
    "[CLS] the markers [SEP] of [MASK] models [PAD] spelt out [UNK]",
    "<|endoftext|> and <|im_end|> spelt out, a<|endoftext|>b",
    "Z̷̢̛a̶l̴̡g̵o̸ t̶e̵x̷t̸ with m̴a̷n̶y̵ marks",
    "�� what was lost before",
    "0" * 600,
    "supercalifragilisticexpialidocious" * 20,
    "=" * 79 + "\n" + "-" * 79,
    "http://example.com/?q=%D8%B9&x=1#frag user@example.com C:\\temp\\x",
    "\u3000全角空白\u3000ＦＵＬＬＷＩＤＴＨ　１２３",
)


@dataclass(frozen=True)
class Text:
    """One text of the corpus."""

    kind: str
    text: str


@functools.cache
def corpus(count: int = WHOLE) -> tuple[Text, ...]:
    """So many distinct texts of every kind there is on this machine, in the order of a fixed shuffle."""
    chosen: dict[str, str] = {}
    for kind, texts in _kinds().items():
        wanted = max(2, SHARES[kind] * count // WHOLE)
        chosen.update(dict.fromkeys(_spread([text for text in texts if text not in chosen], wanted), kind))
    plain = [text for text in _docstrings() if text not in chosen]
    chosen.update(dict.fromkeys(_spread(plain, count - len(chosen)), "docstrings"))
    found = [Text(kind, text) for text, kind in chosen.items()]
    random.Random(5).shuffle(found)
    return tuple(found)


def profile(texts: Sequence[Text]) -> str:
    """How many of each kind, and how long they are."""
    lengths = sorted(len(item.text) for item in texts)
    kinds = ", ".join(f"{kind} {count}" for kind, count in Counter(item.kind for item in texts).most_common())
    median = lengths[len(lengths) // 2]
    return f"{len(texts)} texts of {lengths[0]} to {lengths[-1]:,} characters, median {median}: {kinds}"


def long_texts(count: int) -> list[str]:
    """Distinct texts of 40,000 characters, over every model's limit, in many languages."""
    return [f"{number} {text}"[:LONGEST] for number, text in zip(range(count), itertools.cycle(_longest()))]


def _kinds() -> dict[str, list[str]]:
    """Candidates by kind."""
    return {
        "longest": _longest(),
        "odd characters": [*_ODD, *(f"{one}\n{two}" for one, two in itertools.pairwise(_ODD))],
        "one character": _spread(_characters(), SHARES["one character"]),
        "emoji": _emoji(),
        **{f"manual pages ({language})": _manual(language) for language in LANGUAGES if pages(language)},
        "right to left": _translations(_RIGHT_TO_LEFT),
        "Chinese, Japanese, Korean": _translations(_CJK),
        "other scripts": _translations(_OTHER),
        "code": _code(),
    }


def _spread(items: Sequence[str], count: int) -> list[str]:
    """So many of the items, evenly from the first to the last."""
    count = min(count, len(items))
    return [items[place * len(items) // count] for place in range(count)]


@functools.cache
def _docstrings() -> list[str]:
    found = (docstring["text"] for docstring in collect(Path(sysconfig.get_path("stdlib"))))
    return list(dict.fromkeys(text for text in found if len(text) < 4000))


@functools.cache
def _sources() -> list[str]:
    """Every seventh module of the standard library."""
    files = itertools.islice(sources(Path(sysconfig.get_path("stdlib"))), 0, None, 7)
    return [text for file in files if len(text := file.read_text(encoding="utf-8", errors="replace")) > 200]


def _code() -> list[str]:
    """Functions and classes as they are written."""
    found = []
    for source in _sources():
        for node in ast.parse(source).body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                found.append((ast.get_source_segment(source, node) or "")[:3000])
    return list(dict.fromkeys(found))


def pages(language: str) -> list[Path]:
    """The files of a language's manual pages, in a fixed order."""
    root = Path(os.environ.get("MANPATH", "/usr/share/man").partition(":")[0])
    return sorted(path for path in (root / language).glob("man*/*.gz") if path.is_file() and not path.is_symlink())


def _manual(language: str) -> list[str]:
    """Paragraphs and, every eighth, the first 4,000 characters of a page."""
    found = []
    for number, text in enumerate(_pages(language)):
        paragraphs = [each for each in text.split("\n\n") if len(each) > 20]
        found.append(text[:4000] if number % 8 == 0 else "\n".join(_spread(paragraphs, 1 + number % 3)))
    return list(dict.fromkeys(text for text in found if text.strip()))


@functools.cache
def _pages(language: str) -> list[str]:
    """Every second page as plain text; what only refers to another page, or is in an old encoding, is left out."""
    plain = (_plain(path) for path in pages(language)[::2])
    return [text for text in plain if len(text) > 200]


def _plain(path: Path) -> str:
    """A page without roff's markup, roughly: a blank line where a macro was."""
    try:
        lines = gzip.decompress(path.read_bytes()).decode("utf-8").splitlines()
    except UnicodeDecodeError:
        return ""
    text = "\n".join("" if line.startswith((".", "'")) else line for line in lines)
    text = re.sub(r"\\f(\(..|\[\w*\]|.)|\\[&,/|^%]", "", text).replace("\\-", "-").replace("\\e", "\\")
    return re.sub(r"\n{3,}", "\n\n", text).strip()


@functools.cache
def _translations(languages: tuple[str, ...]) -> list[str]:
    """Django's words and sentences in these languages, by turns; every fourth is several of them."""
    found = []
    for number, strings in enumerate(zip(*map(_translated, languages), strict=False)):
        for language, text in zip(languages, strings, strict=True):
            more = _translated(language)[number : number + number % 15] if number % 4 == 0 else []
            found.append("\n".join([text, *more]))
    return list(dict.fromkeys(found))


@functools.cache
def _translated(language: str) -> list[str]:
    found: dict[str, None] = {}
    for file in sorted(Path(django.__file__).parent.rglob(f"locale/{language}/LC_MESSAGES/django.mo")):
        with file.open("rb") as opened:
            catalog = vars(gettext.GNUTranslations(opened))["_catalog"]
        found |= {text: None for key, text in catalog.items() if key and isinstance(text, str) and text.strip()}
    return list(found)


def _characters() -> list[str]:
    """Letters, digits, signs and symbols of every script."""
    every = map(chr, range(0x21, 0x1F700))
    return [character for character in every if unicodedata.category(character)[0] in "LNPS"]


def _emoji() -> list[str]:
    """Every pictograph with its name, alone, in rows, and composed of several characters."""
    symbols = [chr(number) for number in range(0x1F300, 0x1FAFF) if unicodedata.category(chr(number)) == "So"]
    composed = ["👩🏽‍🚀", "👨‍👩‍👧‍👦", "🏳️‍🌈", "🇺🇳", "1️⃣", "❤️‍🔥", "👋🏿", "🏴󠁧󠁢󠁷󠁬󠁳󠁿"]
    named = [f"{symbol} {unicodedata.name(symbol).lower()}" for symbol in symbols]
    rows = ["".join(symbols[start : start + start % 40 + 2]) for start in range(0, len(symbols), 9)]
    mixed = [f"{symbol}{other} ok {other}" for symbol, other in zip(symbols, itertools.cycle(composed))]
    return list(dict.fromkeys(itertools.chain(composed, *zip(named, itertools.cycle(rows), mixed))))


@functools.cache
def _longest() -> list[str]:
    """Texts of 10,000 to 40,000 characters: modules, pages one behind the other, translations."""
    languages = [language for language in LANGUAGES if pages(language)]
    wholes = [
        "\n".join(_sources()),
        "\n\n".join(_docstrings()),
        *("\n\n".join(_pages(language)) for language in languages),
        *("\n".join(_translated(language)) for language in ("ar", "ja", "ru")),
    ]
    found = []
    for number in range(40):
        whole, length = wholes[number % len(wholes)], LONGEST - number * 30_000 // 40
        start = number * 7919 % max(1, len(whole) - length)
        found.append(whole[start : start + length])
    return list(dict.fromkeys(found))
