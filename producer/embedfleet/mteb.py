"""An encoder for MTEB, so that its tasks, and your own, measure what a fleet gives. mteb comes with the extra `mteb`.

mteb is imported where it is used: this module can be without it.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from embedfleet.client import Fleet
from embedfleet.contract import EmbedSettings
from embedfleet.errors import TextError
from embedfleet.models import named
from embedfleet.records import Record
from embedfleet.vectors import Embed, Embedding, all_vectors, fingerprint_of

if TYPE_CHECKING:
    import numpy as np
    from mteb.abstasks.task_metadata import TaskMetadata
    from mteb.models.model_meta import ModelMeta
    from mteb.types import Array, PromptType


class FleetEncoder:
    """What ``mteb.evaluate`` takes as a model (mteb's ``EncoderProtocol``). Vectors are the fleet's, cosine compares.

    ``settings``: default: as the model's, with texts over the limit truncated, as MTEB's own models do. Queries and
    documents are embedded as such. Where a task has neither (STS, clustering, …) texts are documents; but for a model
    with instructions queries, as MTEB does it for Qwen3. An instruction is, first to last: the settings', the task's
    prompt, that of the task's kind, the model's.
    ``to`` and ``embed`` are as with :class:`~embedfleet.vectors.Embedding`.
    """

    def __init__(
        self,
        fleet: Fleet,
        settings: EmbedSettings | None = None,
        *,
        to: str | None = None,
        embed: Embed | None = None,
    ) -> None:
        self._fleet = fleet
        self._settings = settings or EmbedSettings(on_overflow="truncate")
        self._profile = fleet.settings.profile(self._settings.model)
        self._embedding = Embedding(fleet, to, embed)

    @property
    def mteb_model_meta(self) -> "ModelMeta":
        """What mteb files results under: the model, its revision, and the settings that were chosen."""
        from mteb.models.model_meta import ModelMeta, ScoringFunction

        model = named(self._settings.model or self._fleet.settings.model)
        known = {
            "name": model if model.count("/") == 1 else f"local/{model.rstrip('/').rsplit('/', 1)[-1]}",
            "revision": self._fleet.settings.revision,
            "embed_dim": self._settings.dimensions or self._profile.dimensions,
            "max_tokens": self._profile.max_tokens,
            "use_instructions": self._profile.takes_instruction,
            "similarity_fn_name": ScoringFunction.COSINE,
            "experiment_kwargs": self._settings.model_dump(exclude_unset=True, exclude={"model"}),
        }
        return ModelMeta.create_empty(known)

    def encode(
        self,
        inputs: Iterable[Mapping[str, Sequence[str]]],
        *,
        task_metadata: "TaskMetadata",
        hf_split: str,  # noqa: ARG002 - mteb passes it
        hf_subset: str,  # noqa: ARG002
        prompt_type: "PromptType | None" = None,
        **_: Any,
    ) -> "np.ndarray[Any, Any]":
        """The vectors of batches of texts: (texts, dimensions), in order.

        Raises TextError naming how many texts have none: mteb knows no missing vector.
        """
        texts = [text for batch in inputs for text in batch["text"]]
        settings = self._fleet.settings.resolve(self._settings_for(task_metadata, prompt_type))
        records = [Record(str(position), text) for position, text in enumerate(texts)]
        job = self._embedding.job(fingerprint_of(texts), lambda: records, settings)
        at, vectors = all_vectors(job)
        if len(at) < len(texts):
            said = ", ".join(f"{code} {count}" for code, count in job.errors_left().most_common())
            missing = len(texts) - len(at)
            raise TextError(
                f"{task_metadata.name}: {missing} of {len(texts)} texts have no vector ({said}): {job.uri}."
            )
        ordered: np.ndarray[Any, Any] = vectors[[at[record.id] for record in records]]
        return ordered

    def similarity(self, embeddings1: "Array", embeddings2: "Array") -> "Array":
        """Cosines of all with all."""
        from mteb.similarity_functions import cos_sim

        return cos_sim(embeddings1, embeddings2)

    def similarity_pairwise(self, embeddings1: "Array", embeddings2: "Array") -> "Array":
        """Cosines row by row."""
        from mteb.similarity_functions import pairwise_cos_sim

        return pairwise_cos_sim(embeddings1, embeddings2)

    def _settings_for(self, task: "TaskMetadata", prompt_type: "PromptType | None") -> EmbedSettings:
        """What the texts are, and the instruction."""
        kind = prompt_type.value if prompt_type is not None else None
        chosen = self._settings
        if kind == "document":
            return chosen.model_copy(update={"input_type": "document", "instruction": None, "prompt_name": None})
        if kind is None and not self._profile.takes_instruction:
            return chosen
        instruction = chosen.instruction
        if self._profile.takes_instruction and instruction is None and chosen.prompt_name is None:
            instruction = _task_prompt(task) or None
        return chosen.model_copy(update={"input_type": "query", "instruction": instruction})


def _task_prompt(task: "TaskMetadata") -> str:
    """What a task, or else its kind, says a query is for."""
    from mteb.abstasks.abstask import get_abstask_prompt

    prompt = task.prompt
    said = prompt.get("query", "") if isinstance(prompt, dict) else prompt
    return str(said or get_abstask_prompt(task.name))
