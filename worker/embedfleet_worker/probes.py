"""Whether an engine computes what it should: texts that it embeds before a worker serves. Not whether it goes on to
(checks.py looks at every vector).

A broken kernel, padding that leaks into short texts, other weights than the profile's, another pooling: none raises an
error, and each would fill a store with vectors that look sound.
"""

import logging
import time
from collections.abc import Sequence
from concurrent.futures import TimeoutError as FutureTimeout
from dataclasses import dataclass
from typing import Any

import numpy as np

from embedfleet.agreement import cosines, least_cosine, least_golden_cosine
from embedfleet.contract import EmbedSettings, InputType
from embedfleet.errors import ConfigurationError, DeadlineExceeded, EngineFailed, EngineUnavailable
from embedfleet.models import Golden, ModelProfile
from embedfleet_worker.checks import wrong
from embedfleet_worker.engine.base import Engine, Priority, Tokens
from embedfleet_worker.prompts import render

log = logging.getLogger(__name__)

_PARAGRAPH = (
    "A worker that takes a batch holds a lease on it, and renews the lease for as long as it works. If it dies, the "
    "lease runs out and another worker takes the batch. Whoever is second finds the part that the first one wrote. "
)
_TEXTS: tuple[tuple[str, str, InputType], ...] = (
    ("one word", "lease", "document"),
    ("a sentence", "The quick brown fox jumps over the lazy dog.", "document"),
    ("a long text", _PARAGRAPH * 8, "document"),  # about 400 tokens; cut where a model takes fewer
    ("other scripts", "こんにちは世界。Привет, мир! مرحبا بالعالم 🦊", "document"),
    ("a query", "what happens to a batch when its worker dies?", "query"),
)
"""Of many lengths, so that the short ones are padded, or packed with others, when all are in one batch."""


@dataclass(frozen=True)
class _Probe:
    """A text that is embedded alone and with the others."""

    name: str
    tokens: Tokens
    golden: Golden | None


def check(engine: Engine, profile: ModelProfile, deadline_s: float) -> None:
    """Raise ConfigurationError if the engine's vectors are not sound, change with the batch, or are not the model's.

    Raises EngineUnavailable if it died, or takes longer than ``deadline_s`` for one of the calls.
    """
    begun = time.monotonic()
    probes = _probes(engine, profile)
    alone = np.stack([_embedded(engine, profile, [probe], deadline_s)[0] for probe in probes])
    together = _embedded(engine, profile, probes, deadline_s)
    least = least_cosine(engine.identity.dtype)
    for probe, cosine in zip(probes, cosines(alone, together), strict=True):
        if cosine < least:
            raise _refused(
                engine,
                profile,
                f"{probe.name} has another vector in a batch of {len(probes)} than alone: cosine {cosine:.6f}, and "
                f"{least} is the least in {engine.identity.dtype}. A kernel of the engine is broken, or padding counts "
                "as text. Try EMBEDFLEET_DTYPE=float32, or another version of the engine.",
            )
    _check_distinct(engine, profile, probes, alone, least)
    _check_golden(engine, profile, probes, alone)
    log.info("the probe texts agree", extra={"texts": len(probes), "seconds": round(time.monotonic() - begun, 3)})


def _probes(engine: Engine, profile: ModelProfile) -> list[_Probe]:
    """The texts above, and those of the profile's golden vectors, as the engine takes them."""
    golden = [(f"golden text {number}", each.text, each.input_type, each) for number, each in enumerate(profile.golden)]
    wanted = [*((name, text, kind, None) for name, text, kind in _TEXTS), *golden]
    prompts = [render(text, _settings(kind, profile), profile) for _, text, kind, _ in wanted]
    tokens = engine.tokenise(prompts, truncate=True)
    return [_Probe(name, item, expected) for (name, _, _, expected), item in zip(wanted, tokens, strict=True)]


def _settings(input_type: InputType, profile: ModelProfile) -> EmbedSettings:
    asks = input_type == "query" and profile.takes_instruction
    return EmbedSettings(
        input_type=input_type, instruction=next(iter(profile.instructions.values()), "") if asks else None
    )


def _embedded(
    engine: Engine, profile: ModelProfile, probes: Sequence[_Probe], deadline_s: float
) -> np.ndarray[Any, Any]:
    """(probes, full dimensions), each sound by itself."""
    names = probes[0].name if len(probes) == 1 else f"{len(probes)} texts in one batch"
    future = engine.embed([probe.tokens for probe in probes], Priority.BULK)
    try:
        embedded = future.result(deadline_s)
    except (FutureTimeout, DeadlineExceeded):
        engine.abort(future)
        raise EngineUnavailable(f"engine: it did not embed {names} within {deadline_s:g} s.") from None
    except EngineFailed as exc:
        raise _refused(engine, profile, f"{names}: the engine fails at it ({exc}).") from None
    for row, probe in enumerate(probes):
        refusal = embedded.errors.get(row)
        problem = ("engine_error", refusal) if refusal is not None else wrong(embedded.vectors[row], engine.dimensions)
        if problem is not None:
            beside = " in a batch" if len(probes) > 1 else ""
            raise _refused(
                engine,
                profile,
                f"{probe.name}{beside}: {problem[1]}. The number format may overflow (try EMBEDFLEET_DTYPE=float32), "
                "or the weights are damaged or not this model's.",
            )
    return np.stack([np.asarray(vector, np.float32) for vector in embedded.vectors])


def _check_distinct(
    engine: Engine, profile: ModelProfile, probes: Sequence[_Probe], alone: np.ndarray[Any, Any], least: float
) -> None:
    """One vector for every text is stable too."""
    others = cosines(alone[:1].repeat(len(alone) - 1, axis=0), alone[1:])
    if (others >= least).all():
        raise _refused(
            engine,
            profile,
            f"{len(probes)} different texts all have the same vector: cosine {others.min():.6f}. The weights are "
            "damaged, or the engine reads no tokens.",
        )


def _check_golden(engine: Engine, profile: ModelProfile, probes: Sequence[_Probe], alone: np.ndarray[Any, Any]) -> None:
    identity = engine.identity
    least = least_golden_cosine(identity.dtype, identity.quantization)
    for probe, vector in zip(probes, alone, strict=True):
        if probe.golden is None or probe.tokens.truncated:  # cut below the model's own limit: another text
            continue
        head = np.array([probe.golden.head])
        [cosine] = cosines(vector[None, : head.shape[1]], head)
        if cosine < least:
            raise _refused(
                engine,
                profile,
                f"{probe.name} ({probe.golden.text[:40]!r}) has cosine {cosine:.6f} to the reference's vector, and "
                f"{least} is the least in {identity.quantization or identity.dtype}. These are not the model's weights "
                "(EMBEDFLEET_MODEL, EMBEDFLEET_REVISION), or the files beside them say another pooling than "
                f"{profile.pooling} or another tokenizer.",
            )


def _refused(engine: Engine, profile: ModelProfile, said: str) -> ConfigurationError:
    identity = engine.identity
    return ConfigurationError(
        f"model {profile.name}: {identity.engine} {identity.engine_version} does not compute its vectors, and this "
        f"worker does not serve. Probe: {said}"
    )
