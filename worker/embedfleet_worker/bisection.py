"""Finding the texts that a batch fails at, by halves. Not how they are tried (pipeline.py).

For what the process survives only: whoever calls this has nothing else in the engine, so what fails is to blame.
"""

import time
from collections import deque
from collections.abc import Callable, Sequence

from embedfleet.errors import DeadlineExceeded, EngineFailed

LEAST_S = 10.0
"""Of a piece, at least: any model embeds one text in it."""
_SHARE = 0.75
"""Of the time of a piece, that each of its halves gets: more than a half, or a batch that takes a little longer than it
may would be as late in pieces.
"""


def longest_s(deadline_s: float) -> float:
    """The most that a batch may take, in pieces."""
    return 8 * deadline_s + 20 * min(LEAST_S, deadline_s)


def bisect(
    prompts: Sequence[str],
    attempt: Callable[[Sequence[str], float], None],
    deadline_s: float,
    *,
    least_s: float = LEAST_S,
    clock: Callable[[], float] = time.monotonic,
) -> dict[str, EngineFailed | DeadlineExceeded]:
    """The prompts that fail alone, each with how. ``attempt`` keeps what it computes; other errors go up.

    ``attempt`` is called with prompts and the seconds it may take, with all of them first, then level by level: no more
    than twice as often as there are prompts, and but 2 log2(n) + 1 times if one of n is bad. In total it gets
    eight times ``deadline_s`` and 20 ``least_s``, which finds one that takes too long among a thousand, and does one
    that takes twice as long as it may. What is left when that is over fails untried.
    """
    least_s = min(least_s, deadline_s)
    allowed_s = 8 * deadline_s + 20 * least_s  # longest_s, unless a test says otherwise
    end = clock() + allowed_s
    failed: dict[str, EngineFailed | DeadlineExceeded] = {}
    pieces = deque([(prompts, deadline_s)] if prompts else [])
    while pieces:
        piece, piece_s = pieces.popleft()
        left_s = end - clock()
        if left_s <= 0:
            failed |= dict.fromkeys(piece, DeadlineExceeded(f"its batch took longer than {allowed_s:g} s in pieces"))
            continue
        try:
            attempt(piece, min(piece_s, left_s))
        except (EngineFailed, DeadlineExceeded) as exc:
            if len(piece) == 1:
                failed[piece[0]] = exc
            else:
                middle, half_s = len(piece) // 2, max(_SHARE * piece_s, least_s)
                pieces += [(piece[:middle], half_s), (piece[middle:], half_s)]
    return failed
