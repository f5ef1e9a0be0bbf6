"""What a worker costs its broker while there is nothing to do."""

import sys
import time
from pathlib import Path
from typing import Any

from embedfleet import Fleet
from embedfleet.settings import LANES
from tests.integration.command import start
from tests.waiting import wait_until

MEASURED_S = 8.0
NOT_THE_WORKERS = ("time", "rpop", "zrangebyscore", "info", "config")
"""Requests: what our scripts call on the server is none, and this test asks too."""


def test_an_idle_worker_sends_at_most_one_request_a_second_and_lane(redis_url: str, tmp_path: Path) -> None:
    worker = start("worker", cwd=tmp_path, broker_url=redis_url, store=tmp_path / "store")
    try:
        with Fleet(broker_url=redis_url, store=str(tmp_path / "store"), engine="synthetic") as fleet:
            redis: Any = fleet.broker.redis
            wait_until(lambda: fleet.broker.workers(fleet.broker.deliver_queue), "the worker to consume")
            time.sleep(1)
            redis.config_resetstat()
            used = cpu_s(worker.pid)
            time.sleep(MEASURED_S)
            used = cpu_s(worker.pid) - used
            counts = {name.removeprefix("cmdstat_"): stat["calls"] for name, stat in redis.info("commandstats").items()}
    finally:
        worker.terminate()
        worker.communicate(timeout=30)
    sent = sum(count for name, count in counts.items() if name not in NOT_THE_WORKERS)
    rate, share = sent / MEASURED_S / len(LANES), used / MEASURED_S
    sys.stderr.write(f"{rate:.2f} requests a second and lane, {share:.1%} of a core: {counts}\n")
    assert counts["blmove"] >= len(LANES)
    assert sent <= MEASURED_S * len(LANES)


def cpu_s(pid: int) -> float:
    """Processor time that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(") ")[2].split()
    return (int(fields[11]) + int(fields[12])) / 100
