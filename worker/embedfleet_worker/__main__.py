"""Settings → engine → worker. Exit codes: 0 stopped, 2 configuration, 70 the engine died, 75 the broker is not there.

A supervisor starts a fresh process after 70 and 75; after 2 somebody has to change a setting first.
"""

import logging
import os
import signal
import sys
import threading
import time
import warnings

from celery.platforms import SecurityWarning
from celery.signals import setup_logging
from celery.worker import state as celery_state

# Read by vLLM and the tokenizers when they are imported.
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # the cores are the engine's

from embedfleet.broker import Broker, connect
from embedfleet.contract import TASK_ANSWER, TASK_DELIVER, TASK_EMBED
from embedfleet.errors import ConfigurationError, EmbedfleetError, Retryable, StoreUnavailable
from embedfleet.models import ModelProfile, profile_of
from embedfleet.settings import LANES, FleetSettings, load
from embedfleet.store import open_store
from embedfleet_worker import app
from embedfleet_worker.cache import VectorCache
from embedfleet_worker.deliveries import Deliveries
from embedfleet_worker.engine.base import Engine
from embedfleet_worker.engine.synthetic import SyntheticEngine
from embedfleet_worker.pipeline import NoCache, Pipeline
from embedfleet_worker.tasks import Tasks

log = logging.getLogger("embedfleet_worker")

_EXIT_CONFIGURATION = 2
_EXIT_ENGINE = 70
_EXIT_TRY_AGAIN = 75  # sysexits.h: EX_TEMPFAIL
_GIVING_BACK_S = 5.0


def main() -> int:
    """Run until told to stop."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s", stream=sys.stderr)
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))  # nothing is held yet; Celery takes over when it consumes
    warnings.filterwarnings("ignore", category=SecurityWarning)  # of pickle as root: this worker reads JSON only
    try:
        settings = load()
        broker = connect(settings)
        broker.check(*(broker.lane(lane) for lane in settings.queues), broker.dead_queue)
        _check_stores(settings)
        pipeline = None if settings.queues == ("deliver",) else _pipeline(settings)
        deliveries = Deliveries(broker, settings)
    except EmbedfleetError as exc:
        log.error("%s", exc)
        return _EXIT_TRY_AGAIN if isinstance(exc, Retryable) else _EXIT_CONFIGURATION
    code = _serve(settings, broker, pipeline, deliveries)
    deliveries.close()
    if pipeline is not None:
        pipeline.engine.close()
    return code


def _pipeline(settings: FleetSettings) -> Pipeline:
    """The engine, ready to embed, with what is around it; the process ends when the engine dies."""
    profile = profile_of(settings.model)
    cache = _cache(settings, profile)
    engine = load_engine(profile, settings)
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


def _serve(settings: FleetSettings, broker: Broker, pipeline: Pipeline | None, deliveries: Deliveries) -> int:
    """Consume until told to stop; Celery's exit code, which is not 0 when its loop ended by itself."""
    work: dict[str, app.Work] = {TASK_DELIVER: deliveries.deliver}
    if pipeline is not None:
        tasks = Tasks(pipeline=pipeline, broker=broker, model=settings.model, allowed_stores=settings.stores)
        work |= {TASK_EMBED: tasks.embed, TASK_ANSWER: tasks.answer}
    setup_logging.connect(lambda **_: None, weak=False)  # Celery leaves logging to us
    logging.getLogger("celery").setLevel(logging.WARNING)  # a line a batch is enough, and that one is ours
    logging.getLogger("celery.app.trace").setLevel(logging.ERROR)  # it would print a traceback for each give-back
    logging.getLogger("celery.worker.consumer.consumer").addFilter(_without_bodies)
    # In the order of LANES: an interactive message is taken before a bulk one.
    queues = {broker.lane(lane): app.HELD[lane] for lane in LANES if lane in settings.queues}
    celery = app.build(broker, work, queues)
    log.info("consuming %s", ", ".join(queues))
    worker = celery.Worker(
        queues=list(queues), without_gossip=True, without_mingle=True, without_heartbeat=True, quiet=True
    )
    worker.start()
    return int(worker.exitcode or 0)


def _without_bodies(record: logging.LogRecord) -> bool:
    """Celery logs the whole body of a message that it can't use; texts never reach a log."""
    if "message body" in str(record.msg):
        record.msg, record.args, record.exc_info = "a message that is none of ours was dropped", (), None
    return True


def _cache(settings: FleetSettings, profile: ModelProfile) -> VectorCache | NoCache:
    if settings.cache_url is None:
        return NoCache()
    return VectorCache(settings.cache_url.get_secret_value(), profile.dimensions)


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
