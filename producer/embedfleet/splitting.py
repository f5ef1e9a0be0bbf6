"""One text cut into chunks: where each begins and ends. Not how tokens are counted, nor what a chunk's prompt is.

A chunk ends with a sentence if one ends in its second half, else behind a word, else between two characters that belong
together for nobody. Only blanks are left out, between chunks. Positions are code points.
"""

import re
import unicodedata
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Sequence

# Each pattern begins only where a run does, and never goes back: a text may be a million dots.
_SENTENCES = re.compile(
    r"(?<![.!?…؟۔])[.!?…؟۔]++[\])}\"'’”»]*+\s++(?=\S)"
    r"|(?<![。！？｡।॥።။])[。！？｡।॥።။]++[」』”’）】]*+\s*+"
    r"|\n[^\S\n]*+\n\s*+"  # an empty line
)
_WORDS = re.compile(r"(?<=[\s、，；：])\S")
_BLANK = re.compile(r"\s*+")
_LONGEST_CHARACTER = 64  # code points that are kept together as one that is seen
_JOINER = "\u200d"
_TRIES = 4  # to lose just the tokens that are too many, before a chunk is halved


class Oversize(Exception):
    """A single character has more tokens than a chunk. ``position``: its place in the text."""

    def __init__(self, position: int) -> None:
        super().__init__(position)
        self.position = position


class Splitter:
    """Chunks of one text, none over its limit by ``excess``, and overlapping by no more than ``overlap`` tokens."""

    def __init__(
        self,
        text: str,
        starts: Sequence[int],
        room: int,
        overlap: int,
        excess: Callable[[str], int],
        count: Callable[[str], int],
    ) -> None:
        """``starts``: where tokens begin, ascending; only a guide. ``room``: tokens of text in a chunk.

        ``excess`` says how many tokens a chunk has too many, at most 0 if it fits; ``count``, how many a text has.
        """
        self._text = text
        self._starts = starts
        self._room = room
        self._overlap = overlap
        self._excess = excess
        self._count = count
        self._sentences = array("i", _sentence_begins(text))
        self._words = array("i", (match.start() for match in _WORDS.finditer(text)))

    def __iter__(self) -> Iterator[tuple[int, int]]:
        """Begin and end of each chunk, in order; each goes further than the one before. Raises Oversize."""
        begin = covered = self._skip(0)
        while begin < len(self._text):
            end = self._end(begin, covered)
            if end is not None:
                yield begin, end
                covered = self._skip(end)
                begin = self._begin(begin, end) if covered < len(self._text) else covered
            elif begin < covered:
                begin = covered  # with what it repeats there is no room for anything new
            else:
                raise Oversize(begin)

    def _end(self, begin: int, covered: int) -> int | None:
        """Where the chunk ends that begins here; None if that is nowhere behind what is covered."""
        first = bisect_left(self._starts, begin)
        most = self._start(first + self._room, least=begin + 1)
        tries = 0
        while True:
            end = self._trimmed(begin, self._border(begin, most))
            if end <= covered:
                return None
            over = self._excess(self._text[begin:end])
            if over <= 0:
                return end
            if end - begin == 1:
                return None
            tries += 1
            fewer = bisect_left(self._starts, end) - over
            shorter = self._start(fewer, least=0) if fewer > first and tries <= _TRIES else begin
            most = shorter if begin < shorter < end else begin + (end - begin) // 2

    def _border(self, begin: int, most: int) -> int:
        """The best place to end in the second half of what a chunk holds of new text."""
        if most >= len(self._text):
            return len(self._text)
        first, last = bisect_left(self._starts, begin), bisect_left(self._starts, most)
        least = self._start(first + (last - first + self._overlap) // 2, least=begin + 1)
        for borders in (self._sentences, self._words):
            at = bisect_right(borders, most) - 1
            if at >= 0 and borders[at] >= least:
                return borders[at]
        return self._between_characters(begin, most)

    def _begin(self, before: int, end: int) -> int:
        """Where the next chunk begins: at a sentence if that repeats half of the overlap or more, else at a word."""
        behind = self._skip(end)
        allowed = min(self._overlap, bisect_left(self._starts, end) - bisect_right(self._starts, before))
        while allowed > 0:
            last = bisect_left(self._starts, end)
            begin = self._overlapping(last, allowed, end)
            if begin >= end:
                break
            over = self._count(self._text[begin:end]) - self._overlap
            if over <= 0 and begin > before:
                return begin
            allowed -= max(1, over)
        return behind

    def _overlapping(self, last: int, allowed: int, end: int) -> int:
        earliest, half = self._starts[last - allowed], self._starts[last - (allowed + 1) // 2]
        for borders, latest in ((self._sentences, half), (self._words, end - 1)):
            at = bisect_left(borders, earliest)
            if at < len(borders) and borders[at] <= latest:
                return borders[at]
        while earliest < end and _joined(self._text, earliest):
            earliest += 1
        return self._skip(earliest)

    def _between_characters(self, begin: int, most: int) -> int:
        for end in range(most, max(begin, most - _LONGEST_CHARACTER), -1):
            if not _joined(self._text, end):
                return end
        return most

    def _start(self, token: int, *, least: int) -> int:
        return max(self._starts[token], least) if token < len(self._starts) else len(self._text)

    def _skip(self, position: int) -> int:
        """The first character from here on that is not blank."""
        blank = _BLANK.match(self._text, position)
        return blank.end() if blank else position

    def _trimmed(self, begin: int, end: int) -> int:
        while end > begin + 1 and self._text[end - 1].isspace():
            end -= 1
        return end


def _sentence_begins(text: str) -> Iterator[int]:
    for match in _SENTENCES.finditer(text):
        begin = match.end()
        if begin < len(text) and not (text[match.start()] == "." and text[begin].islower()):  # e.g. an abbreviation
            yield begin


def _joined(text: str, position: int) -> bool:
    """Whether the character here belongs to the one before: a mark, a variation, a skin tone, behind a joiner."""
    if not 0 < position < len(text):
        return False
    character = text[position]
    return (
        character == _JOINER
        or text[position - 1] == _JOINER
        or "\U0001f3fb" <= character <= "\U0001f3ff"
        or unicodedata.category(character) in ("Mn", "Mc", "Me")
    )
