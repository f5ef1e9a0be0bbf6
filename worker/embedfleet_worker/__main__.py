"""Settings → engine → serving. Exit codes: 0 stopped, 2 configuration, 70 the engine died, 75 the broker or the
server that embeds is not there.

A supervisor starts a fresh process after 70 and 75; after 2 somebody has to change a setting first.
"""

import logging
import os
import signal
import warnings
from functools import partial

from celery.platforms import SecurityWarning

# Read by vLLM and the tokenizers when they are imported.
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # the cores are the engine's
os.environ.setdefault("PROMETHEUS_DISABLE_CREATED_SERIES", "true")  # a second series for each counter

from embedfleet.broker import Broker, connect
from embedfleet.contract import TASK_ANSWER, TASK_COMPLETE, TASK_DELIVER, TASK_EMBED
from embedfleet.errors import ConfigurationError, EmbedfleetError, Retryable, StoreUnavailable
from embedfleet.models import ModelProfile
from embedfleet.settings import FleetSettings, load
from embedfleet.store import open_store
from embedfleet_worker import logs, probes, weights
from embedfleet_worker.app import Work
from embedfleet_worker.cache import VectorCache
from embedfleet_worker.deliveries import Deliveries
from embedfleet_worker.engine.base import Engine
from embedfleet_worker.engine.synthetic import SyntheticEngine
from embedfleet_worker.lifecycle import notices
from embedfleet_worker.lifecycle.health import Health, Server
from embedfleet_worker.lifecycle.janitor import Janitor
from embedfleet_worker.pipeline import NoCache, Pipeline
from embedfleet_worker.serving import serve
from embedfleet_worker.settling import refuse
from embedfleet_worker.starts import Starts
from embedfleet_worker.tasks import Tasks
from embedfleet_worker.telemetry import CountedCache, Metrics

log = logging.getLogger("embedfleet_worker")

_EXIT_CONFIGURATION = 2
_EXIT_TRY_AGAIN = 75  # sysexits.h: EX_TEMPFAIL


def main() -> int:
    """Run until told to stop; the exit code of a worker that could not begin."""
    logs.install()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: os._exit(0))  # nothing is held yet
    warnings.filterwarnings("ignore", category=SecurityWarning)  # of pickle as root: this worker reads JSON only
    health, metrics = Health(), Metrics()
    try:
        settings = load()
        if settings.health_port:
            Server(settings.health_port, health, metrics)
        if not settings.is_local:  # it goes with the machine: there is nobody to give back to
            notices.watch(_leave)
        broker = connect(settings)
        broker.check(*(broker.lane(lane) for lane in settings.queues), broker.deliver_queue, broker.dead_queue)
        _check_stores(settings)
        pipeline = _pipeline(settings, health, metrics) if settings.needs_engine else None
        deliveries = Deliveries(broker, settings, metrics)
    except EmbedfleetError as exc:
        log.error("%s", exc)
        return _EXIT_TRY_AGAIN if isinstance(exc, Retryable) else _EXIT_CONFIGURATION
    health.doing = "connecting to the broker"
    Janitor(settings, broker).start()
    starts = Starts()
    return serve(broker, _work(settings, broker, pipeline, deliveries, starts, metrics), starts, health, metrics)


def _leave(notice: str) -> None:
    """The way down is that of a SIGTERM from outside, also while the model loads."""
    log.warning("%s", notice)
    os.kill(os.getpid(), signal.SIGTERM)


def _pipeline(settings: FleetSettings, health: Health, metrics: Metrics) -> Pipeline:
    """The engine, ready to embed, with what is around it; the process ends when the engine dies."""
    profile = settings.profile()
    cache = _cache(settings, profile, metrics)
    health.doing = "loading the model"
    engine = load_engine(profile, settings)
    health.engine_dead = engine.dead
    if settings.engine != "synthetic":  # whose vectors mean nothing
        health.doing = "embedding probe texts"
        probes.check(engine, profile, settings.deadline_s)
    metrics.describe(engine.identity)
    return Pipeline(engine, profile, cache, settings.cache_salt.get_secret_value())


def _check_stores(settings: FleetSettings) -> None:
    """Raise ConfigurationError for none or an unfit one. What is not there now may be there when a batch comes."""
    if not settings.stores:
        raise ConfigurationError(
            "no store: set EMBEDFLEET_STORE or EMBEDFLEET_ALLOWED_STORES; without, no job is allowed."
        )
    for store in settings.stores:
        try:
            open_store(store).check_writable()
        except StoreUnavailable as exc:
            log.warning("%s", exc)


def load_engine(profile: ModelProfile, settings: FleetSettings) -> Engine:
    """The engine of the settings, ready to embed. What an engine needs is imported only when it is wanted."""
    if settings.engine == "synthetic":
        return SyntheticEngine(profile, settings)
    if settings.engine == "openai":
        weights.check_tokenizers()
        from embedfleet_worker.engine.openai import OpenaiEngine

        return OpenaiEngine(profile, settings)
    from embedfleet_worker.engine.vllm import VllmEngine

    return VllmEngine(profile, settings)


def _work(
    settings: FleetSettings,
    broker: Broker,
    pipeline: Pipeline | None,
    deliveries: Deliveries,
    starts: Starts,
    metrics: Metrics,
) -> dict[str, Work]:
    """What is done for which task."""
    work: dict[str, Work] = {TASK_DELIVER: deliveries.deliver, TASK_COMPLETE: deliveries.complete}
    if pipeline is None:  # Celery would drop what it does not know
        work |= dict.fromkeys((TASK_EMBED, TASK_ANSWER), partial(refuse, broker))
    else:
        tasks = Tasks(
            pipeline, broker, settings.model, settings.stores, metrics, starts, deadline_s=settings.deadline_s
        )
        work |= {TASK_EMBED: tasks.embed, TASK_ANSWER: tasks.answer}
    return work


def _cache(settings: FleetSettings, profile: ModelProfile, metrics: Metrics) -> CountedCache | NoCache:
    if settings.cache_url is None:
        return NoCache()
    return CountedCache(VectorCache(settings.cache_url.get_secret_value(), profile.dimensions), metrics)


if __name__ == "__main__":
    code = main()
    logging.shutdown()
    os._exit(code)  # threads of the libraries may hang
