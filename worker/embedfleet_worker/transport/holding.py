"""What this worker holds of its broker: room per lane, leases renewed, messages settled in batches.

Two threads tell the broker: one what is done with, one renews and sweeps. Neither Celery's loop nor a task waits for
them, and whatever the broker answers ends neither.
"""

import logging
import random
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from embedfleet.errors import EmbedfleetError, Retryable
from embedfleet_worker.transport import GIVEN_BACK_S, Back, Leases, Order, Taken

log = logging.getLogger(__name__)

SWEEP_S = 1.0
_LONGEST_S = 900  # that a message waits which was given back again and again
_GATHER_S = 0.02  # for more that goes into the same request
_ENOUGH = 10  # to tell at once: what SQS takes in one request
_AGAIN_S, _AGAIN_MAX_S = 0.2, 5.0
_PAUSE_MAX_S = 30.0


@dataclass(frozen=True)
class _Held:
    """A message and, by the monotonic clock, since when it is held."""

    taken: Taken
    since: float


class Holding:
    """Thread-safe. ``limits``: how many messages of each queue may be held. ``longest_s``: then a lease is let go.

    What is held for longer hangs: its lease is not renewed, so that another worker does it, and :attr:`hanging` is set.
    """

    def __init__(self, leases: Leases, limits: Mapping[str, int], lease_s: float, longest_s: float) -> None:
        self._leases = leases
        self._limits = limits
        self._lease_s = lease_s
        self._longest_s = longest_s
        self._held: dict[str, _Held] = {}
        self._orders: list[Order] = []
        self._under_way = 0
        self._paused: dict[str, tuple[int, float]] = {}
        self._taking = True
        self._closing = False
        self._changed = threading.Condition()
        self._telling = threading.Lock()  # renewing a lease never comes after giving it up
        self.hanging = threading.Event()
        """Something is held for so long that whoever works on it hangs."""
        self._teller = threading.Thread(target=self._tell_all, name="leases", daemon=True)
        self._teller.start()
        threading.Thread(target=self._keep, name="heartbeat", daemon=True).start()

    def wait_for_room(self, queue: str, timeout_s: float) -> int:
        """How many more messages of a queue may be taken; waits for the first."""
        with self._changed:
            self._changed.wait_for(lambda: self._room(queue) > 0, timeout_s)
            return self._room(queue)

    def add(self, tag: str, taken: Taken) -> bool:
        """Hold a message; False when nothing more is, and a poll that was under way brought it all the same."""
        with self._changed:
            if self._taking:
                self._held[tag] = _Held(taken, time.monotonic())
            return self._taking

    def times(self, tag: str) -> int:
        """How often a message that is held has been given out, where the broker counts that."""
        held = self._held.get(tag)
        return held.taken.times if held else 1

    def done(self, tag: str) -> None:
        """It is done with: the broker forgets it. Whatever its lane was paused for is there again."""
        with self._changed:
            held = self._settle(tag, None)
            if held is not None and held.taken.queue in self._paused:
                del self._paused[held.taken.queue]
                self._changed.notify_all()

    def give_back(self, tag: str, back: Back = Back()) -> None:  # noqa: B008 - frozen
        """Others may have it, in so many seconds; if nothing is said, in a moment, that is longer each time.

        If what it needs is down, no more of its lane is taken for a while, that is longer each time too.
        """
        with self._changed:
            delay_s = back.delay_s
            if delay_s is None:
                delay_s = min(GIVEN_BACK_S * self.times(tag), _LONGEST_S)
            held = self._settle(tag, delay_s, blamed=back.blamed, last=back.outage)
            if held is not None and back.outage:
                self._pause(held.taken.queue)

    def refuse(self, taken: Iterable[Taken]) -> None:
        """Others may have messages that never were held. Tried once: else they come back when their lease ends."""
        self._tell([Order(each.queue, each.lease, 0, 0, each.message, each.times > 1) for each in taken])

    def stop_taking(self) -> None:
        """From now on there is no room."""
        with self._changed:
            self._taking = False

    def wait_until_empty(self, timeout_s: float) -> bool:
        """Whether nothing is held, and all is told, within the time."""
        with self._changed:
            return self._changed.wait_for(lambda: not (self._held or self._orders or self._under_way), timeout_s)

    def close(self, timeout_s: float, *, blamed: bool = False) -> int:
        """Give back what is held, now, and tell the broker all there is to tell within the time. How many they were.

        ``blamed``: one of them may be at fault.
        """
        with self._changed:
            self._taking, self._closing = False, True
            left = list(self._held)
            for tag in left:
                self._settle(tag, 0, blamed=blamed)
            self._changed.notify_all()
        self._teller.join(timeout_s)
        return len(left)

    def renew(self) -> None:
        """Lengthen the leases of what is held and does not hang. Raises what the first queue that failed met."""
        queues = defaultdict(list)
        for held in self._within_time():
            queues[held.taken.queue].append(held.taken.lease)
        failures = [exc for queue, leases in queues.items() if (exc := self._renew(queue, leases))]
        if failures:
            raise failures[0]

    def _renew(self, queue: str, leases: list[str]) -> Exception | None:
        """What went wrong; the other queues may do better."""
        with self._telling:
            with self._changed:
                still = {held.taken.lease for held in self._held.values()}
            try:
                self._leases.renew(queue, [lease for lease in leases if lease in still])
            except Exception as exc:
                return exc
        return None

    def _within_time(self) -> list[_Held]:
        with self._changed:
            all_held = list(self._held.values())
        oldest = time.monotonic() - self._longest_s
        within = [held for held in all_held if held.since > oldest]
        if len(within) < len(all_held) and not self.hanging.is_set():
            log.error("%d messages are held for over %g s: they hang", len(all_held) - len(within), self._longest_s)
            self.hanging.set()
        return within

    def _room(self, queue: str) -> int:
        if not self._taking or self._paused.get(queue, (0, 0.0))[1] > time.monotonic():
            return 0
        return max(0, self._limits[queue] - Counter(held.taken.queue for held in self._held.values())[queue])

    def _pause(self, queue: str) -> None:
        failures, until = self._paused.get(queue, (0, 0.0))
        if until < time.monotonic():  # else it is the same outage, met by another message
            pause_s = min(GIVEN_BACK_S * 2**failures, _PAUSE_MAX_S) * random.uniform(0.75, 1)
            self._paused[queue] = min(failures + 1, 10), time.monotonic() + pause_s

    def _settle(self, tag: str, delay_s: float | None, *, blamed: bool = False, last: bool = False) -> _Held | None:
        with self._changed:
            held = self._held.pop(tag, None)
            if held is not None:
                taken, until = held.taken, time.monotonic() + self._lease_s
                # What was suspected before stays so: SQS would begin to count anew.
                suspected = blamed or taken.times > 1
                self._orders.append(Order(taken.queue, taken.lease, delay_s, until, taken.message, suspected, last))
                self._changed.notify_all()
            return held

    def _tell_all(self) -> None:
        """What was done must not come back for a request that failed once: told again until its lease is over."""
        failures = 0
        while orders := self._gather():
            left = self._tell(orders)
            late = [order for order in left if order.until < time.monotonic()]
            if late:  # what it did is not done twice: its part is there
                log.warning("%d messages could not be settled and come again", len(late))
            with self._changed:
                self._orders += [order for order in left if order not in late]
                self._under_way = 0
                self._changed.notify_all()
            failures = failures + 1 if left else 0
            if failures:
                again_s = min(_AGAIN_S * 2**failures, _AGAIN_MAX_S)
                with self._changed:
                    self._changed.wait_for(lambda: self._closing, again_s * random.uniform(0.5, 1))
                    if self._closing:
                        self._changed.wait(_AGAIN_S)

    def _gather(self) -> list[Order]:
        """The next orders, with what comes a moment later; none when all is told and nothing is held any more."""
        with self._changed:
            self._changed.wait_for(lambda: self._orders or self._closing)
            self._changed.wait_for(lambda: len(self._orders) >= _ENOUGH or self._closing, _GATHER_S)
            orders, self._orders = self._orders, []
            self._under_way = len(orders)
            return orders

    def _tell(self, orders: list[Order]) -> list[Order]:
        with self._telling:
            try:
                return self._leases.settle(orders)
            except Exception as exc:  # without this thread nothing would ever be told again
                log.warning("leases: %s", exc if isinstance(exc, EmbedfleetError) else type(exc).__name__)
                return orders if isinstance(exc, Retryable) else []

    def _keep(self) -> None:
        """Renew every third of a lease, sweep every second; what fails is tried again in the next."""
        renewed, failing = 0.0, False
        while not self._closing:
            try:
                if time.monotonic() - renewed >= self._lease_s / 3:
                    self.renew()
                    renewed = time.monotonic()
                self._leases.sweep()
                failing = False
            except Exception as exc:  # without this thread no lease would ever be renewed again
                if not failing:  # once an outage
                    log.warning("leases: %s", exc if isinstance(exc, EmbedfleetError) else type(exc).__name__)
                failing = True
            time.sleep(min(SWEEP_S, self._lease_s / 3))
