"""A retrieval task for MTEB from data that are on every machine: find a docstring's body by its first line."""

import sysconfig
from typing import Any

from data import docstrings
from datasets import Dataset
from mteb.abstasks.retrieval import AbsTaskRetrieval
from mteb.abstasks.task_metadata import TaskMetadata


class StdlibDocstrings(AbsTaskRetrieval):
    """Queries are first lines, documents the rest of the same docstrings; each query has one relevant document."""

    metadata = TaskMetadata(
        name="StdlibDocstrings",
        description="Find the body of a docstring of Python's standard library by its first line.",
        prompt={"query": "Given the first line of a Python docstring, retrieve the rest of it"},
        type="Retrieval",
        category="t2t",
        dataset={"path": "none: made on this machine", "revision": sysconfig.get_python_version()},
        eval_splits=["test"],
        eval_langs=["eng-Latn"],
        main_score="ndcg_at_10",
    )

    def load_data(self, **_: Any) -> None:
        """From the standard library's sources, and from no hub."""
        if self.data_loaded:
            return
        found = docstrings()
        queries = [{"id": f"q-{name}", "text": head} for name, head, _ in found]
        corpus = [{"id": name, "title": "", "text": body} for name, _, body in found]
        relevant = {f"q-{name}": {name: 1} for name, _, _ in found}
        split = {
            "corpus": Dataset.from_list(corpus),
            "queries": Dataset.from_list(queries),
            "relevant_docs": relevant,
            "top_ranked": None,
        }
        self.dataset = {"default": {"test": split}}
        self.data_loaded = True
