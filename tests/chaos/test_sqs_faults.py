"""Scenario 6: SQS answers with errors or not at all, and gives every message out twice. And clocks that are off."""

from collections import Counter

import pytest

from tests import aws
from tests.chaos.conftest import StartFleet
from tests.chaos.fleet import ChaosFleet
from tests.chaos.invariant import check
from tests.waiting import wait_until

ANSWERS = ("400", "403", "500", "503", "599", "reset", "cut", "throttled", "expired")
_OPERATIONS = ("ReceiveMessage", "DeleteMessageBatch", "ChangeMessageVisibilityBatch")
_EACH = 2  # answers in a row: a wait that doubles comes after each
_FAKETIME = "/usr/bin/faketime"
TEXTS = {f"t{number}": f"text {number}" for number in range(1500)}


def test_errors_and_dropped_connections(proxy: aws.Proxy, start_fleet: StartFleet) -> None:
    fleet = start_fleet("sqs")
    fleet.keep(2)
    fleet.ready(2)
    for answer in ANSWERS:
        texts = {f"{answer}-{name}": text for name, text in list(TEXTS.items())[:300]}
        job = fleet.submit(texts.items(), key=answer)
        for operation in _OPERATIONS:
            proxy.faults[operation].extend([answer] * _EACH)
        check(fleet, job, texts, timeout_s=60)
        wait_until(lambda: not proxy.faults["ReceiveMessage"], "polls to go on")
    left = [operation for operation in _OPERATIONS if proxy.faults[operation]]
    assert left in ([], ["ChangeMessageVisibilityBatch"])  # leases are renewed, and given back, only now and then
    assert fleet.exits == []


def test_every_message_twice(proxy: aws.Proxy, start_fleet: StartFleet) -> None:
    fleet = start_fleet("sqs")
    proxy.faults["SendMessageBatch"].extend(["twice"] * 1000)
    job = fleet.submit(TEXTS.items())
    fleet.keep(2)
    check(fleet, job, TEXTS)
    wait_until(lambda: fleet.is_idle(), "the second copies to be gone")
    taken = Counter(event.about for event in fleet.journal.events() if event.what == "taken")
    assert min(taken.values()) == 2, "each was there twice, and once more where a lease ended"


@pytest.mark.debian("faketime", "faketime")
@pytest.mark.parametrize("lease_s", [6.0])  # not so short that a busy machine ends it
def test_a_clock_an_hour_off(fleet: ChaosFleet) -> None:
    """Leases are the broker's: nobody's end while their work takes longer than a lease."""
    fleet.environment["EMBEDFLEET_SYNTHETIC_TEXTS_PER_S"] = "8"  # six batches take longer than a lease
    texts = dict(list(TEXTS.items())[:240])
    fleet.keep(1)
    command = fleet.command
    for offset in ("-1h", "+1h"):
        fleet.command = [_FAKETIME, "--exclude-monotonic", "-m", "-f", offset, *command]
        fleet.workers.append(fleet.start())
    fleet.ready(3)
    job = fleet.submit(texts.items())
    check(fleet, job, texts)
    workers = {event.worker for event in fleet.journal.events() if event.what == "part written"}
    assert len(workers) == 3
    assert fleet.figures.redelivered == 0
