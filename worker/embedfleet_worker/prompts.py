"""Settings and a text to the prompt the model was trained on. Not its tokens (tokens.py)."""

from embedfleet.contract import EmbedSettings
from embedfleet.models import ModelProfile


def render(text: str, settings: EmbedSettings, profile: ModelProfile) -> str:
    """A query and a document each follow the profile's template; for most models a document is the bare text.

    >>> from embedfleet.models import profile_of
    >>> qwen = profile_of("Qwen/Qwen3-Embedding-0.6B")
    >>> render("what is a lease?", EmbedSettings(input_type="query", instruction="Find the clause"), qwen)
    'Instruct: Find the clause\\nQuery:what is a lease?'
    """
    return profile.template(settings.input_type, settings.prompt_name).format(
        text=text, instruction=settings.instruction
    )
