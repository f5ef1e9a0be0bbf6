"""Before a worker takes anything: is the server there, does it know the model, what does it give.

Whatever a person has to change is a ConfigurationError here; later it would be an outage.
"""

import logging
import threading
from dataclasses import dataclass
from typing import Any

import numpy as np

from embedfleet import policies
from embedfleet.errors import ConfigurationError
from embedfleet.models import ModelProfile
from embedfleet.settings import FleetSettings
from embedfleet_worker.engine.base import Identity, Tokens
from embedfleet_worker.engine.openai_answers import Answer, Models
from embedfleet_worker.engine.openai_server import Format, Refused, Server

log = logging.getLogger(__name__)

_NORM_TOLERANCE = 1e-3  # as of the check of every vector
_NORM = "server %s: its vectors have norm %.4g; they are normalised here"
_COUNT = (
    "server %s: it counts %s tokens in a text of %d, so what it cuts by itself can't be seen here; "
    "its own limit has to be %d tokens or more"
)


@dataclass(frozen=True)
class Served:
    """What was found."""

    identity: Identity
    model: str
    """As the server lists it."""
    format: Format
    probe: np.ndarray[Any, Any]
    """The probe's vector."""
    counts_alike: bool
    """Whether it counts tokens as we do, so that a text which it cut is seen."""


def look(server: Server, profile: ModelProfile, settings: FleetSettings, probe: Tokens, max_tokens: int) -> Served:
    """Ask, in bounded tries. Raises ConfigurationError, and EngineUnreachable for a server that is not there yet."""
    listed = policies.ENGINE(server.models)
    model = _known(server, settings, listed)
    answer, encoding = _first(server, model, profile, probe)
    if answer.errors:
        raise ConfigurationError(
            f"server {server.url}: at model {model!r} {answer.errors[0]} for {profile.name}. Is it the same model? "
            "Else correct EMBEDFLEET_OPENAI_MODEL or EMBEDFLEET_MODEL."
        )
    norm = answer.norms[0]
    if not np.isfinite(norm) or norm == 0:
        raise ConfigurationError(
            f"server {server.url}: model {model!r} gives a vector of norm {norm:g} for a short text. "
            "Start it with another number format, or look at its log."
        )
    if abs(norm - 1) > _NORM_TOLERANCE:
        log.warning(_NORM, server.url, norm)
    counts_alike = answer.tokens == probe.count
    if not counts_alike:
        said = "no" if answer.tokens is None else str(answer.tokens)
        log.warning(_COUNT, server.url, said, probe.count, max_tokens)
    identity = _identity(profile, settings, model, listed, server.version())
    return Served(identity, model, encoding, answer.vectors[0], counts_alike)


def _known(server: Server, settings: FleetSettings, listed: Models | None) -> str:
    wanted = settings.openai_model or settings.model
    if listed is None:
        return wanted
    known = listed.known_as(wanted)
    if known is None:
        raise ConfigurationError(
            f"server {server.url}: it does not know the model {wanted!r}; it has {listed.shown()}. "
            "Set EMBEDFLEET_OPENAI_MODEL to the one that is meant, or start the server with it."
        )
    return known


def _first(server: Server, model: str, profile: ModelProfile, probe: Tokens) -> tuple[Answer, Format]:
    """The probe's answer, and the format that the server takes: base64 is half as long, and exact."""
    reasons = []
    formats: tuple[Format, ...] = ("base64", "float")
    for encoding in formats:
        try:
            answer = policies.ENGINE(
                server.embed, [probe.prompt], model, profile.dimensions, encoding, threading.Event()
            )
            return answer, encoding
        except Refused as exc:
            reasons.append(str(exc))
    raise ConfigurationError(f"server {server.url}: model {model!r} embeds nothing ({reasons[-1]}).")


def _identity(
    profile: ModelProfile, settings: FleetSettings, model: str, listed: Models | None, version: str | None
) -> Identity:
    said = [each for each in (listed.owner if listed else None, version) if each]
    return Identity(
        engine="openai",
        engine_version=" ".join(said) or "unknown",
        model=profile.name,
        revision=settings.revision,
        # What the weights are, only the server knows: its own name for them keeps apart what it keeps apart.
        weights=f"openai:{model}" + (f"@{settings.revision}" if settings.revision else ""),
        dtype="unknown",
        quantization=settings.quantization,  # what the operator says that the server does
        pooling=profile.pooling,
    )
