"""What a worker counts: exact, passed by when it fails, and never waiting for a broker."""

import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from prometheus_client import REGISTRY
from prometheus_client.parser import text_string_to_metric_families

from embedfleet.errors import BrokerUnavailable
from embedfleet.tables import Outcome, Outcomes
from embedfleet_worker import telemetry
from embedfleet_worker.cache import Entry, VectorCache
from embedfleet_worker.telemetry import CountedCache, Metrics
from tests.unit.fake_engine import IDENTITY
from tests.unit.redis_server import RedisServer, running_redis
from tests.waiting import wait_until


@pytest.fixture
def metrics() -> Metrics:
    return Metrics()


def value(metrics: Metrics, name: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(name, labels)


def nonzero(metrics: Metrics, name: str) -> dict[str, float]:
    """Of one metric, the samples that are not 0, by their labels' values."""
    samples = [sample for family in metrics.registry.collect() for sample in family.samples if sample.name == name]
    return {" ".join(sample.labels.values()): sample.value for sample in samples if sample.value}


def test_a_page_is_prometheus_text_and_says_what_runs(metrics: Metrics) -> None:
    metrics.describe(IDENTITY)
    families = {family.name: family for family in text_string_to_metric_families(metrics.page().decode())}
    assert families["embedfleet_info"].samples[0].labels["model"] == "a model"
    assert {"embedfleet_batches", "embedfleet_texts", "embedfleet_tokens", "embedfleet_stage_seconds"} <= set(families)


def test_a_message_is_counted_once_by_how_it_ended(metrics: Metrics) -> None:
    with metrics.batch("bulk"):
        assert value(metrics, "embedfleet_batches_in_flight", lane="bulk") == 1
        telemetry.ended(telemetry.DEAD_LETTER)
    with metrics.batch("bulk"):
        pass
    with pytest.raises(KeyError):
        _embedded_but_not_sent(metrics)
    assert nonzero(metrics, "embedfleet_batches_total") == {
        "bulk dead_letter": 1,
        "bulk duplicate": 1,
        "interactive given_back": 1,
    }
    assert nonzero(metrics, "embedfleet_batches_in_flight") == {}


def _embedded_but_not_sent(metrics: Metrics) -> None:
    with metrics.batch("interactive"):
        telemetry.ended(telemetry.EMBEDDED)
        raise KeyError


def test_threads_do_not_mix_up_how_their_messages_ended(metrics: Metrics) -> None:
    both = threading.Barrier(2)

    def work(outcome: str) -> None:
        with metrics.batch("bulk"):
            telemetry.ended(outcome)
            both.wait(10)

    threads = [threading.Thread(target=work, args=(outcome,)) for outcome in ("expired", "dead_letter")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert nonzero(metrics, "embedfleet_batches_total") == {"bulk expired": 1, "bulk dead_letter": 1}


def outcomes() -> Outcomes:
    rows = [
        Outcome("a", n_tokens=3),
        Outcome("b", n_tokens=5, cached=True),
        Outcome("c", n_tokens=8, truncated=True),
        Outcome("d", error=("empty", "")),
        Outcome("e", n_tokens=7, error=("not_finite", "")),
    ]
    return Outcomes(rows, np.zeros((5, 4), np.float32), {"engine": 0.25, "cache": 0.002})


def test_what_was_written_is_counted_by_outcome(metrics: Metrics) -> None:
    with metrics.batch("bulk"):
        metrics.written(outcomes())
    texts = nonzero(metrics, "embedfleet_texts_total")
    assert texts == {"embedded": 2, "cached": 1, "empty": 1, "not_finite": 1}
    assert value(metrics, "embedfleet_tokens_total") == 16
    assert value(metrics, "embedfleet_truncated_texts_total") == 1
    assert nonzero(metrics, "embedfleet_batches_total") == {"bulk embedded": 1}
    assert nonzero(metrics, "embedfleet_stage_seconds_sum") == {"engine": 0.25, "cache": 0.002}


def test_a_batch_without_any_vector_has_failed(metrics: Metrics) -> None:
    failed = Outcomes([Outcome("a", error=("cancelled", ""))], np.zeros((1, 4), np.float32))
    with metrics.batch("bulk"):
        metrics.written(failed)
    assert nonzero(metrics, "embedfleet_batches_total") == {"bulk failed": 1}


def test_texts_whose_part_another_worker_wrote_are_its_to_count(metrics: Metrics) -> None:
    with metrics.batch("bulk"):
        metrics.written(outcomes(), first=False)
    assert nonzero(metrics, "embedfleet_texts_total") == {}
    assert nonzero(metrics, "embedfleet_batches_total") == {"bulk duplicate": 1}
    assert nonzero(metrics, "embedfleet_stage_seconds_count") == {"engine": 1, "cache": 1}, "its time was spent"


def test_deliveries_are_counted_by_kind_and_result(metrics: Metrics) -> None:
    metrics.delivery("webhook", "confirmed")
    metrics.delivery("webhook", "confirmed")
    metrics.delivery("pgvector", "dead")
    assert nonzero(metrics, "embedfleet_deliveries_total") == {"webhook confirmed": 2, "pgvector dead": 1}


def test_counting_never_breaks_the_work(metrics: Metrics) -> None:
    for name in [name for name in vars(metrics) if name.startswith("_")]:
        setattr(metrics, name, None)
    done = []
    with metrics.batch("bulk"), metrics.stage("read"):
        metrics.written(outcomes())
        metrics.delivery("webhook", "confirmed")
        metrics.lookups(1, 1)
        metrics.describe(IDENTITY)
        done.append(1)
    assert done


def test_nothing_is_shared_by_the_process() -> None:
    first, second = Metrics(), Metrics()
    first.lookups(3, 0)
    assert nonzero(second, "embedfleet_cache_lookups_total") == {}
    assert not [family.name for family in REGISTRY.collect() if family.name.startswith("embedfleet")]


def test_a_label_never_comes_from_a_text(metrics: Metrics) -> None:
    """An error's message may name what is wrong with a text; only its code is a label."""
    failed = Outcomes([Outcome("id-secret", error=("engine_error", "secret"))], np.zeros((1, 4), np.float32))
    metrics.written(failed)
    assert b"secret" not in metrics.page()


def test_the_document_names_each_metric_and_each_label_and_no_other(metrics: Metrics) -> None:
    metrics.watch(lambda _: 0, {"bulk": "q"})
    metrics.describe(IDENTITY)
    metrics.delivery("webhook", "confirmed")
    found = {}
    for family in text_string_to_metric_families(metrics.page().decode()):
        name = f"{family.name}_total" if family.type == "counter" else family.name
        if not name.endswith("_created"):  # which a worker's process turns off
            found[name] = {label for sample in family.samples for label in sample.labels} - {"le"}
    document = (Path(__file__).parents[2] / "docs" / "monitoring.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(embedfleet_\w+)` \|([^|]*)\|", document, re.MULTILINE)
    assert {name: set(re.findall(r"`(\w+)`", labels)) for name, labels in rows} == found


# Queue depths


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    with running_redis(tmp_path) as running:
        yield running


def depths(metrics: Metrics) -> dict[str, float]:
    samples = [s for family in metrics.registry.collect() for s in family.samples if s.name == "embedfleet_queue_depth"]
    return {sample.labels["lane"]: sample.value for sample in samples}


def test_depths_are_the_brokers(metrics: Metrics, server: RedisServer) -> None:
    server.client.lpush("q-bulk", "1", "2", "3")
    metrics.watch(lambda queue: int(server.client.llen(queue)), {"bulk": "q-bulk", "interactive": "q-interactive"})
    assert depths(metrics) == {"bulk": 3, "interactive": 0}


def test_depths_are_asked_once_in_some_seconds(metrics: Metrics, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    metrics.watch(lambda queue: asked.append(queue) or len(asked), {"bulk": "q"})
    assert [depths(metrics), depths(metrics)] == [{"bulk": 1}, {"bulk": 1}]
    monkeypatch.setattr(telemetry, "_DEPTHS_S", 0.0)
    assert depths(metrics) == {"bulk": 2}


def test_depths_are_absent_when_the_broker_can_not_be_asked(metrics: Metrics, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(telemetry, "_DEPTHS_S", 0.0)
    gone: list[bool] = []

    def depth(_: str) -> int:
        if gone:
            raise BrokerUnavailable("gone")
        return 7

    metrics.watch(depth, {"bulk": "q"})
    assert depths(metrics) == {"bulk": 7}
    gone.append(True)
    assert depths(metrics) == {}, "not 0, nor what it was"
    assert b"embedfleet_queue_depth{" not in metrics.page()


def test_a_broker_that_hangs_holds_no_scrape_and_one_thread(metrics: Metrics, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(telemetry, "_ASKING_S", 0.05)
    hangs = threading.Event()
    asked = []
    metrics.watch(lambda queue: asked.append(queue) or hangs.wait(30), {"bulk": "q"})
    begun = time.monotonic()
    assert [depths(metrics) for _ in range(5)] == [{}] * 5
    assert time.monotonic() - begun < 3
    assert len(asked) == 1
    hangs.set()
    wait_until(lambda: depths(metrics) == {"bulk": 1}, "the answer that came late")


# The cache


def test_hits_and_misses_are_counted(metrics: Metrics, server: RedisServer) -> None:
    cache = CountedCache(VectorCache(server.url, 4), metrics)
    cache.set([(b"a", Entry(3, 3, False, np.ones(4, np.float32)))])
    found = cache.get([b"a", b"b", b"c"])
    assert [entry is not None for entry in found] == [True, False, False]
    assert nonzero(metrics, "embedfleet_cache_lookups_total") == {"hit": 1, "miss": 2}
