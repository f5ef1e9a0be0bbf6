"""Which ids were seen before, exactly and in bounded memory. Not what to do about a duplicate.

numpy is imported where it is used: ``import embedfleet`` stays light.
"""

from collections.abc import Sequence
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import numpy as np

_DIGEST_BYTES = 16  # two of 10 million ids share a digest with a probability of 1e-25
_RECENT_IDS = 16_384  # about 2 MB as a set of bytes; sorting and merging cost little at this size
_RUN_RATIO = 4  # measured: with 2, searching more runs costs more than is saved in merging them less


class _Run(NamedTuple):
    """Digests as two columns of uint64, sorted by the first.

    Numbers, not numpy's bytes (``S16``): those drop trailing NULs on their way to Python and are found more slowly.
    """

    high: "np.ndarray[Any, Any]"
    low: "np.ndarray[Any, Any]"


class SeenIds:
    """The ids added so far, as 128-bit digests: 16 bytes each, and twice that while runs are merged.

    Exact for the first ``MAX_EXACT`` ids (under 350 MB). After that the memory is given back and only
    duplicates within one call of :meth:`add` are found.

    >>> seen = SeenIds()
    >>> seen.add(["a", "b"]), seen.add(["c", "a", "d"]), seen.add(["d", "e", "e"])
    (None, 1, 2)
    """

    MAX_EXACT = 10_000_000

    def __init__(self) -> None:
        self._recent: set[bytes] = set()
        self._runs: list[_Run] = []  # from large to small, each at most a quarter of the one before
        self._remembered = 0
        self._forgotten = False

    def add(self, ids: Sequence[str]) -> int | None:
        """Remember ``ids``, unless one was seen before, in an earlier call or earlier in this one.

        Returns the position of the first such id; then none of this call is remembered. Calls of some hundred ids are
        the fastest per id.
        """
        digests = [blake2b(i.encode("utf-8", "surrogatepass"), digest_size=_DIGEST_BYTES).digest() for i in ids]
        distinct = set(digests)
        if len(distinct) < len(digests) or not self._recent.isdisjoint(distinct) or self._maybe_in_runs(digests):
            position = self._first_duplicate(digests)
            if position is not None:
                return position
        self._remember(distinct)
        return None

    def _maybe_in_runs(self, digests: Sequence[bytes]) -> bool:
        """Whether the first half of some digest is in a run: no is certain, yes has to be looked at."""
        if not self._runs or not digests:
            return False
        import numpy as np

        wanted = np.sort(_columns(digests).high)  # in order, so that one search stays near the one before
        for run in self._runs:
            found = run.high.take(run.high.searchsorted(wanted), mode="clip")
            if (found == wanted).any():
                return True
        return False

    def _first_duplicate(self, digests: Sequence[bytes]) -> int | None:
        """The exact answer, slowly: asked for when there is a duplicate, or two digests share their first half."""
        earlier: set[bytes] = set()
        for position, digest in enumerate(digests):
            if digest in earlier or digest in self._recent or self._in_runs(digest):
                return position
            earlier.add(digest)
        return None

    def _in_runs(self, digest: bytes) -> bool:
        if not self._runs:
            return False
        high, low = (column[0] for column in _columns([digest]))
        for run in self._runs:
            start, stop = run.high.searchsorted(high, "left"), run.high.searchsorted(high, "right")
            if (run.low[start:stop] == low).any():
                return True
        return False

    def _remember(self, digests: set[bytes]) -> None:
        self._remembered += len(digests)
        if self._forgotten or self._remembered > self.MAX_EXACT:
            self._forgotten = True
            self._recent, self._runs = set(), []
            return
        self._recent |= digests
        if len(self._recent) >= _RECENT_IDS:
            self._spill()

    def _spill(self) -> None:
        """Turn the recent ids into a run, and merge it with the runs it would crowd."""
        merging = [_columns(list(self._recent))]
        self._recent = set()
        size = len(merging[0].high)
        while self._runs and len(self._runs[-1].high) < _RUN_RATIO * size:
            merging.append(self._runs.pop())
            size += len(merging[-1].high)
        self._runs.append(_merged(merging))


def _columns(digests: Sequence[bytes]) -> _Run:
    """Digests as columns, in the order given."""
    import numpy as np

    pairs = np.frombuffer(b"".join(digests), dtype=np.uint64).reshape(-1, 2)
    return _Run(pairs[:, 0].copy(), pairs[:, 1].copy())


def _merged(runs: list[_Run]) -> _Run:
    """One sorted run of several. Empties ``runs`` so that the peak is twice the result and no more."""
    import numpy as np

    highs, lows = [run.high for run in runs], [run.low for run in runs]
    runs.clear()
    high = np.concatenate(highs)
    highs.clear()
    order = high.argsort(kind="stable")  # a merge sort, which takes sorted stretches as they are
    high = high[order]
    low = np.concatenate(lows)
    lows.clear()
    low = low[order]
    return _Run(high, low)
