"""Settings of chunking against a model, before anything is queued. Not the cutting (splitting.py).

There is no tokenizer here. What only one can tell, the worker checks once more (embedfleet_worker/chunking.py).
"""

from typing import TYPE_CHECKING

from embedfleet.contract import Chunking, EmbedSettings
from embedfleet.errors import SettingsError

if TYPE_CHECKING:
    from embedfleet.models import ModelProfile

LEAST_ROOM = 8
"""Tokens of text that a chunk has room for, at least: the character with the most has hardly more."""
_SPECIAL_TOKENS = 1  # every model has one or two


def resolved_chunking(settings: EmbedSettings, profile: "ModelProfile") -> Chunking | None:
    """How a task chunks, explicitly, or None if it does not. Raises SettingsError naming what would be allowed.

    An instruction that leaves no room is refused here whatever the policy, if it has too many words already.
    """
    words = len(
        profile.template(settings.input_type, settings.prompt_name)
        .format(text="", instruction=settings.instruction)
        .split()
    )
    if words + _SPECIAL_TOKENS >= profile.max_tokens:
        raise SettingsError(
            f"instruction: with the prompt it has {words} words, and the limit of {profile.name} is "
            f"{profile.max_tokens} tokens: no room is left for a text. Shorten it."
        )
    chunking = settings.chunking
    if settings.on_overflow != "chunk":
        if chunking is not None:
            raise SettingsError(
                f"chunking: on_overflow is {settings.on_overflow!r}, so no text is cut into chunks. "
                'Set on_overflow="chunk", or leave it out.'
            )
        return None
    chunking = chunking or Chunking()
    check_chunking(chunking, profile.max_tokens, words + _SPECIAL_TOKENS, profile.name)
    return chunking


def check_chunking(chunking: Chunking, limit: int, prompt_tokens: int, model: str) -> None:
    """Raise SettingsError unless chunks fit the limit, hold some text beside the prompt, and repeat half of it at most.

    ``prompt_tokens``: the prompt's and the special ones.
    """
    max_tokens = chunking.max_tokens or limit
    if max_tokens > limit:
        raise SettingsError(f"chunking.max_tokens={max_tokens}: the limit of {model} is {limit}. Take that or less.")
    room = max_tokens - prompt_tokens
    if room < LEAST_ROOM:
        raise SettingsError(
            f"chunking.max_tokens={max_tokens}: {prompt_tokens} of them are the prompt and special tokens, which "
            f"leaves too little room for text. Take {prompt_tokens + LEAST_ROOM} or more, or a shorter instruction."
        )
    if chunking.overlap > room // 2:
        raise SettingsError(
            f"chunking.overlap={chunking.overlap}: a chunk has room for {room} tokens of text at most, and repeats no "
            f"more than half of that. Take {room // 2} or less."
        )


def check_round_trip(settings: EmbedSettings) -> None:
    """Raise SettingsError for settings with which a text may have several vectors: ``Fleet.embed`` gives one each."""
    if settings.on_overflow == "chunk" and (settings.chunking or Chunking()).output == "chunks":
        raise SettingsError(
            'chunking.output="chunks": embed gives one vector a text. Set output="mean", or submit the texts as a job.'
        )
