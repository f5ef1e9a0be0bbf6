"""Asking an engine for tokens, and what room its limit leaves a text. Whatever a tokenizer raises is EngineFailed."""

import logging
from array import array
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from embedfleet.contract import EmbedSettings
from embedfleet.errors import EmbedfleetError, EngineFailed, SettingsError
from embedfleet.models import ModelProfile
from embedfleet_worker.engine.base import Engine, Tokens
from embedfleet_worker.logs import frames
from embedfleet_worker.prompts import render

log = logging.getLogger(__name__)


def tokenise(
    engine: Engine, prompts: Sequence[str], *, truncate: bool = False, max_tokens: int | None = None
) -> list[Tokens]:
    """As :meth:`Engine.tokenise`. Raises EngineFailed."""
    with _failures():
        if max_tokens is None:
            return engine.tokenise(prompts, truncate=truncate)
        return engine.tokenise(prompts, truncate=truncate, max_tokens=max_tokens)


def starts(engine: Engine, text: str) -> "array[int]":
    """As :meth:`Engine.starts`. Raises EngineFailed."""
    with _failures():
        return engine.starts(text)


def prompt_tokens(engine: Engine, settings: EmbedSettings, profile: ModelProfile) -> int:
    """Tokens that every text of a task has beside its own: the prompt's and the special ones.

    Raises SettingsError where they leave no room for a text: cut to the limit, all texts would be the same.
    """
    (bare,) = tokenise(engine, [render("", settings, profile)])
    if bare.count >= engine.max_tokens:
        raise SettingsError(
            f"instruction: with the prompt and special tokens it has {bare.count} tokens, and the limit of "
            f"{profile.name} is {engine.max_tokens} here: no room is left for a text. Shorten it."
        )
    return bare.count


@contextmanager
def _failures() -> Iterator[None]:
    try:
        yield
    except EmbedfleetError:
        raise
    except Exception as exc:  # its message may quote a text
        name = type(exc).__name__
        log.error("the tokenizer failed", extra={"error": name, "frames": frames(exc.__traceback__)})
        raise EngineFailed(f"the tokenizer failed: {name}") from None
