"""Going down: stop taking, finish what fits in the grace time, give the rest back, end the process. Not who asks.

Celery's own shutdown waits for the last task, however long that takes, and closes the connection first.
"""

import itertools
import logging
import os
import threading
import time
from collections.abc import Callable

from embedfleet_worker.transport.holding import Holding

log = logging.getLogger(__name__)

_LATE_S = 1.0  # a poll under way may be given what was given back, and gives it back again
_TELLING_S = 5.0  # for the broker to be told what is given back; else leases end by themselves


class Drain:
    """Ends the process once. ``before``: called when it begins.

    ``after``: called when nothing broke and grace is over, before the rest is given back.
    """

    def __init__(
        self,
        holding: Holding,
        grace_s: float,
        before: Callable[[], object] = lambda: None,
        after: Callable[[], object] = lambda: None,
    ) -> None:
        self._holding = holding
        self._grace_s = grace_s
        self._before = before
        self._after = after
        self._asked = itertools.count()
        self._hurry = False

    def begin(self, reason: str, code: int = 0, grace_s: float | None = None) -> bool:
        """Drain in a thread of its own, and exit with this code. Asked again, it goes on as it does: False.

        No lock: one signal's handler may interrupt another's.
        """
        if next(self._asked):
            return False
        grace_s = self._grace_s if grace_s is None else grace_s
        threading.Thread(target=self._run, args=(reason, code, grace_s), name="drain", daemon=True).start()
        return True

    def hurry(self) -> None:
        """Grace no more: somebody waits."""
        self._hurry = True

    def _run(self, reason: str, code: int, grace_s: float) -> None:
        try:
            log.warning("stopping within %g s: %s", grace_s, reason)
            self._holding.stop_taking()
            _within(_TELLING_S, self._before)
            end = time.monotonic() + grace_s
            while time.monotonic() < end and not self._hurry and not self._holding.wait_until_empty(0.1):
                pass
            if code == 0:  # first: who takes what is given back must not find it charged
                _within(_TELLING_S, self._after)
            given_back = self._holding.close(_TELLING_S, blamed=code != 0)
            if given_back:
                time.sleep(_LATE_S)
            log.warning("stopped: %d messages given back", given_back)
        finally:
            os._exit(code)  # whatever still runs, or hangs


def _within(seconds: float, act: Callable[[], object]) -> None:
    """The broker may hang, and the process ends all the same."""
    thread = threading.Thread(target=act, daemon=True)
    thread.start()
    thread.join(seconds)
