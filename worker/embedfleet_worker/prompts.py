"""Settings and a text to the prompt the model was trained on. Not its tokens (tokens.py)."""

from embedfleet.contract import EmbedSettings
from embedfleet.models import ModelProfile


def render(text: str, settings: EmbedSettings, profile: ModelProfile) -> str:
    """A document is the bare text; a query follows the profile's template.

    >>> from embedfleet.models import profile_of
    >>> qwen = profile_of("Qwen/Qwen3-Embedding-0.6B")
    >>> render("what is a lease?", EmbedSettings(input_type="query", instruction="Find the clause"), qwen)
    'Instruct: Find the clause\\nQuery:what is a lease?'
    """
    if settings.input_type == "document":
        return text
    return profile.query_template.format(text=text, instruction=settings.instruction)
