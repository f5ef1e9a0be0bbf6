"""Settings → engine → worker. Exit codes: 0 stopped, 2 configuration, 70 the engine died, 75 the broker is not there.

A supervisor starts a fresh process after 70 and 75; after 2 somebody has to change a setting first.
"""

import logging
import os
import signal
import threading
import time
import warnings
from functools import partial

from celery import Celery
from celery.platforms import SecurityWarning
from celery.signals import setup_logging, worker_shutting_down
from celery.worker import state as celery_state

# Read by vLLM and the tokenizers when they are imported.
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # the cores are the engine's
os.environ.setdefault("PROMETHEUS_DISABLE_CREATED_SERIES", "true")  # a second series for each counter

from embedfleet.broker import Broker, connect
from embedfleet.contract import TASK_ANSWER, TASK_COMPLETE, TASK_DELIVER, TASK_EMBED
from embedfleet.errors import ConfigurationError, EmbedfleetError, Retryable, StoreUnavailable
from embedfleet.models import ModelProfile, profile_of
from embedfleet.settings import LANES, FleetSettings, load
from embedfleet.store import open_store
from embedfleet_worker import app, logs
from embedfleet_worker.cache import VectorCache
from embedfleet_worker.deliveries import Deliveries
from embedfleet_worker.engine.base import Engine
from embedfleet_worker.engine.synthetic import SyntheticEngine
from embedfleet_worker.lifecycle.health import Health, Readiness, Server
from embedfleet_worker.lifecycle.janitor import Janitor
from embedfleet_worker.pipeline import NoCache, Pipeline
from embedfleet_worker.settling import refuse
from embedfleet_worker.tasks import Tasks
from embedfleet_worker.telemetry import CountedCache, Metrics

log = logging.getLogger("embedfleet_worker")

_EXIT_CONFIGURATION = 2
_EXIT_ENGINE = 70
_EXIT_TRY_AGAIN = 75  # sysexits.h: EX_TEMPFAIL
_GIVING_BACK_S = 5.0


def main() -> int:
    """Run until told to stop."""
    logs.install()
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))  # nothing is held yet; Celery takes over when it consumes
    warnings.filterwarnings("ignore", category=SecurityWarning)  # of pickle as root: this worker reads JSON only
    health, metrics = Health(), Metrics()
    try:
        settings = load()
        if settings.health_port:
            Server(settings.health_port, health, metrics)
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
    code = _serve(settings, broker, _work(settings, broker, pipeline, deliveries, metrics), health, metrics)
    deliveries.close()
    if pipeline is not None:
        pipeline.engine.close()
    return code


def _pipeline(settings: FleetSettings, health: Health, metrics: Metrics) -> Pipeline:
    """The engine, ready to embed, with what is around it; the process ends when the engine dies."""
    profile = profile_of(settings.model)
    cache = _cache(settings, profile, metrics)
    health.doing = "loading the model"
    engine = load_engine(profile, settings)
    health.engine_dead = engine.dead
    metrics.describe(engine.identity)
    threading.Thread(target=_exit_when_dead, args=(engine,), daemon=True).start()
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
    """The engine of the settings, ready to embed. vLLM is imported only when it is wanted."""
    if settings.engine == "synthetic":
        return SyntheticEngine(profile, settings)
    from embedfleet_worker.engine.vllm import VllmEngine

    return VllmEngine(profile, settings)


def _work(
    settings: FleetSettings, broker: Broker, pipeline: Pipeline | None, deliveries: Deliveries, metrics: Metrics
) -> dict[str, app.Work]:
    """What is done for which task."""
    work: dict[str, app.Work] = {TASK_DELIVER: deliveries.deliver, TASK_COMPLETE: deliveries.complete}
    if pipeline is None:  # Celery would drop what it does not know
        work |= dict.fromkeys((TASK_EMBED, TASK_ANSWER), partial(refuse, broker))
    else:
        tasks = Tasks(pipeline, broker, settings.model, settings.stores, metrics)
        work |= {TASK_EMBED: tasks.embed, TASK_ANSWER: tasks.answer}
    return work


def _serve(settings: FleetSettings, broker: Broker, work: dict[str, app.Work], health: Health, metrics: Metrics) -> int:
    """Consume until told to stop; Celery's exit code, which is not 0 when its loop ended by itself."""
    setup_logging.connect(lambda **_: None, weak=False)  # Celery leaves logging to us
    for name in ("celery", "botocore"):
        logging.getLogger(name).setLevel(logging.WARNING)  # a line a batch is enough, and that one is ours
    logging.getLogger("celery.app.trace").setLevel(logging.ERROR)  # it would print a traceback for each give-back
    # In the order of LANES: an interactive message is taken before a bulk one.
    lanes = {lane: broker.lane(lane) for lane in LANES if lane in settings.queues}
    celery = app.build(broker, work, {queue: app.HELD[lane] for lane, queue in lanes.items()})
    metrics.watch(broker.depth, lanes)
    _report(health, celery)
    log.info("consuming %s", ", ".join(lanes.values()))
    worker = celery.Worker(
        queues=list(lanes.values()), without_gossip=True, without_mingle=True, without_heartbeat=True, quiet=True
    )
    worker.start()
    return int(worker.exitcode or 0)


def _report(health: Health, celery: Celery) -> None:
    """Have Celery tell when it consumes, and when it was told to stop."""
    Readiness.health = health
    celery.steps["consumer"].add(Readiness)
    worker_shutting_down.connect(lambda **_: setattr(health, "stopping", True), weak=False)


def _cache(settings: FleetSettings, profile: ModelProfile, metrics: Metrics) -> CountedCache | NoCache:
    if settings.cache_url is None:
        return NoCache()
    return CountedCache(VectorCache(settings.cache_url.get_secret_value(), profile.dimensions), metrics)


def _exit_when_dead(engine: Engine) -> None:
    """A broken engine can't be mended in its process: leave, and let the supervisor start a fresh one."""
    engine.dead.wait()
    celery_state.should_stop = _EXIT_ENGINE  # no more messages; those it held are on their way back
    time.sleep(_GIVING_BACK_S)
    os._exit(_EXIT_ENGINE)


if __name__ == "__main__":
    code = main()
    logging.shutdown()
    os._exit(code)  # threads of the libraries may hang; every acknowledgement is out by now
