"""What a server answered, read with distrust: models, vectors, refusals. Not how it is asked (openai_server.py)."""

import base64
import binascii
import json
from dataclasses import dataclass
from typing import Any

import numpy as np

_SHOWN = 200  # characters of a server's message
_SHOWN_MODELS = 20


class Misfit(ValueError):
    """An answer that does not belong to its question."""


@dataclass(frozen=True)
class Answer:
    """Vectors in the order of the texts."""

    vectors: np.ndarray[Any, Any]
    """(texts, dimensions) float32, of norm 1 unless zero or not finite."""
    errors: dict[int, str]
    """By row: what is wrong with a vector that could not be taken."""
    tokens: int | None
    """Tokens that the server says it used, where it does."""
    norms: tuple[float, float]
    """The smallest and the largest norm, as the server gave them."""


@dataclass(frozen=True)
class Models:
    """What a server lists."""

    ids: tuple[str, ...]
    owner: str | None
    """Who the server says it is; of the first model."""

    def known_as(self, name: str) -> str | None:
        """The listed id of a model; Ollama lists ``name:latest`` for what it takes as ``name``."""
        return next((each for each in (name, f"{name}:latest") if each in self.ids), None)

    def shown(self) -> str:
        """The ids, for people."""
        shown = [printable(each) for each in self.ids[:_SHOWN_MODELS]]
        more = len(self.ids) - len(shown)
        return (", ".join(shown) or "none") + (f" and {more} more" if more else "")


def read_models(body: bytes) -> Models:
    """From ``GET /models``. Raises Misfit."""
    listed = _object(body).get("data")
    if not isinstance(listed, list):
        raise Misfit("no list of models")
    models = [each for each in listed if isinstance(each, dict) and isinstance(each.get("id"), str)]
    owner = models[0].get("owned_by") if models else None
    return Models(tuple(each["id"] for each in models), printable(owner) if isinstance(owner, str) else None)


def read_version(body: bytes) -> str | None:
    """From whatever says a ``version``. Raises Misfit."""
    version = _object(body).get("version")
    return printable(version)[:40] if isinstance(version, str) and version else None


def read_vectors(body: bytes, texts: int, dimensions: int) -> Answer:
    """From ``POST /embeddings``, put in order by ``index``. Raises Misfit for a wrong count, or index.

    A vector of another length is an error of its text alone: the others are where they belong.
    """
    document = _object(body)
    rows = document.get("data")
    if not isinstance(rows, list) or len(rows) != texts:
        raise Misfit(f"{len(rows) if isinstance(rows, list) else 'no'} vectors for {texts} texts")
    _check_order(rows)
    vectors = np.zeros((texts, dimensions), np.float32)
    errors = {}
    for item in rows:
        components = _components(item.get("embedding"))
        if components.shape == (dimensions,):
            vectors[item["index"]] = components
        else:
            length = components.shape[0] if components.ndim == 1 else "nested"
            errors[item["index"]] = f"the server gave {length} components and {dimensions} were expected"
    usage = document.get("usage")
    tokens = usage.get("prompt_tokens") if isinstance(usage, dict) else None
    norms = np.linalg.norm(vectors.astype(np.float64), axis=1)
    return Answer(
        _normalised(vectors, norms), errors, tokens if type(tokens) is int else None, (norms.min(), norms.max())
    )


def read_message(body: bytes) -> str:
    """Why a server refused, in the forms that the known ones have; nothing if it is none of them."""
    try:
        document = _object(body)
    except Misfit:
        return ""
    error = document.get("error")
    for place in (error, document):
        if isinstance(place, dict):
            said = place.get("message") or place.get("detail")
            if isinstance(said, str):
                return printable(said)
    return printable(error) if isinstance(error, str) else ""


def printable(text: str) -> str:
    """One short line of what came from outside."""
    line = " ".join(text.split())[:_SHOWN]
    return "".join(character if character.isprintable() else "?" for character in line)


def _check_order(rows: list[Any]) -> None:
    """Each index once: a vector that is not there, or twice, would be another text's."""
    if not all(isinstance(item, dict) for item in rows):
        raise Misfit("vectors without an index")
    found = [item.get("index") for item in rows]
    if not all(type(index) is int for index in found) or sorted(found) != list(range(len(rows))):
        raise Misfit(f"indexes that are not those of {len(rows)} texts")


def _components(embedding: object) -> np.ndarray[Any, Any]:
    """float32 from a list of numbers, or base64 of little-endian ones: servers give either, whatever they are asked."""
    try:
        if isinstance(embedding, str):
            return np.frombuffer(base64.b64decode(embedding, validate=True), "<f4")
        if isinstance(embedding, list):
            with np.errstate(over="ignore"):  # to infinity, which is found
                return np.array(embedding, np.float64).astype(np.float32)
    except (binascii.Error, ValueError, TypeError, OverflowError):
        pass
    raise Misfit("something else than vectors")


def _normalised(vectors: np.ndarray[Any, Any], norms: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Unit norm, which some servers leave to their callers. Zero, NaN and infinity stay, for the check to find."""
    sound = np.isfinite(norms) & (norms > 0)
    divisors = np.where(sound, norms, 1.0)[:, np.newaxis]
    with np.errstate(invalid="ignore"):
        unit: np.ndarray[Any, Any] = (vectors / divisors).astype(np.float32)
        return unit


def _object(body: bytes) -> dict[str, Any]:
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        raise Misfit("no JSON") from None
    if not isinstance(document, dict):
        raise Misfit("no JSON object")
    return document
