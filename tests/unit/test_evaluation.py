"""What is embedded, how often and as what; what is counted; what is refused. Vectors mean nothing here."""

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from embedfleet.contract import EmbedSettings
from embedfleet.errors import ConfigurationError, SettingsError, TextError
from embedfleet.evaluating import parse_try, table
from embedfleet.evaluation import default_settings, evaluate
from embedfleet.labels import Pairs, Retrieval, read_retrieval
from embedfleet.mteb import FleetEncoder
from embedfleet.plotting import check_plot, plot
from embedfleet.testing import InMemoryFleet

QWEN = "Qwen/Qwen3-Embedding-0.6B"
PAIRS = Pairs.of([("a", "b", 1), ("a", "c", 2), ("d", "e", 3)])


@pytest.fixture
def fleet() -> Iterator[InMemoryFleet]:
    with InMemoryFleet(model=QWEN) as running:
        yield running


def retrieval(folder: Path, documents: dict[str, Any], queries: list[dict[str, Any]]) -> Retrieval:
    rows = {"corpus": [{"id": name, "text": text} for name, text in documents.items()], "queries": queries}
    for name, records in rows.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return read_retrieval([str(folder / "corpus.jsonl")], [str(folder / "queries.jsonl")])


@pytest.fixture
def data(tmp_path: Path) -> Retrieval:
    """Each query is its document, word for word."""
    documents = {f"d{n}": f"text {n}" for n in range(120)}
    queries = [{"id": f"q{n}", "text": f"text {n}", "relevant": [f"d{n}"]} for n in range(5)]
    return retrieval(tmp_path, documents, queries)


def test_without_settings_the_lengths_are_the_models_halved(fleet: InMemoryFleet) -> None:
    assert [each.dimensions for each in default_settings(fleet.settings)] == [1024, 512, 256, 128, 64, 32]
    assert default_settings(fleet.settings, EmbedSettings(dimensions=100)) == [EmbedSettings(dimensions=100)]
    with InMemoryFleet() as minilm:
        assert [each.dimensions for each in default_settings(minilm.settings)] == [384]


def test_lengths_and_encodings_are_embedded_once(fleet: InMemoryFleet, data: Retrieval) -> None:
    tries = [EmbedSettings(dimensions=d, encoding=e) for d in (1024, 100, 32) for e in ("float32", "float16")]
    found = evaluate(fleet, data, tries)
    assert [job.spec.settings.dimensions for job in found.jobs] == [1024, 1024]
    assert {job.spec.settings.input_type for job in found.jobs} == {"query", "document"}
    assert [row.vector_bytes for row in found.rows] == [4096, 2048, 400, 200, 128, 64]
    assert list(found.rows[0].metrics) == ["ndcg@10", "recall@10", "recall@100"]


def test_doing_it_again_embeds_nothing(fleet: InMemoryFleet, data: Retrieval) -> None:
    first, again = evaluate(fleet, data), evaluate(fleet, data)
    assert [job.uri for job in first.jobs] == [job.uri for job in again.jobs]
    assert first.rows == again.rows
    evaluate(fleet, data, [EmbedSettings(on_overflow="truncate")])  # other settings are other jobs
    assert len(list(Path(fleet.settings.store or "").glob("j-*/job.json"))) == 4


def test_an_instruction_is_the_queries(fleet: InMemoryFleet, data: Retrieval) -> None:
    found = evaluate(fleet, data, [EmbedSettings(), EmbedSettings(instruction="Find the same text")])
    assert len(found.jobs) == 3, "the corpus is the same"
    instructions = sorted(str(job.spec.settings.instruction) for job in found.jobs)
    assert instructions == ["Find the same text", f"{fleet_query_instruction()}", "None"]
    assert "Find the same text" in table(found)


def fleet_query_instruction() -> str:
    from embedfleet.models import profile_of

    return profile_of(QWEN).instructions["query"]


def test_pairs_are_documents_or_with_an_instruction_queries(fleet: InMemoryFleet) -> None:
    found = evaluate(fleet, PAIRS, [EmbedSettings(), EmbedSettings(instruction="Retrieve semantically similar text.")])
    assert [job.spec.settings.input_type for job in found.jobs] == ["document", "query"]
    assert found.counts == {"pairs": 3, "texts": 5}


def test_what_a_text_is_equal_to_comes_first_at_every_length(fleet: InMemoryFleet, data: Retrieval) -> None:
    """MiniLM embeds queries and documents alike, so the same text is the same vector."""
    with InMemoryFleet() as minilm:
        [row] = evaluate(minilm, data, recall_at=[1, 5]).rows
    assert row.metrics == {"ndcg@10": 1, "recall@1": 1, "recall@5": 1}


def test_failed_texts_are_counted_and_not_dropped(tmp_path: Path) -> None:
    queries = [
        {"id": "found", "text": "one", "relevant": ["d1"]},
        {"id": "half", "text": "one", "relevant": ["d1", "blank"]},
        {"id": "failed", "text": " ", "relevant": ["d2"]},
    ]
    data = retrieval(tmp_path, {"d1": "one", "blank": "", "d2": "two", "d3": None}, queries)
    with InMemoryFleet() as minilm:
        found = evaluate(minilm, data)
        assert sum(job.errors_left().total() for job in found.jobs) == 3
    [row] = found.rows
    assert row.errors == 3
    assert row.metrics["recall@10"] == pytest.approx((1 + 0.5 + 0) / 3)


def test_what_a_retry_mended_counts(tmp_path: Path) -> None:
    queries = [{"id": "q", "text": "one", "relevant": ["long", "d1"]}]
    data = retrieval(tmp_path, {"d1": "one", "long": "word " * 2000}, queries)
    with InMemoryFleet() as minilm:
        [before] = evaluate(minilm, data).rows
        assert (before.errors, before.metrics["recall@10"]) == (1, 0.5)
        [job] = [job for job in evaluate(minilm, data).jobs if job.error_counts()]
        assert job.retry(on_overflow="truncate") is not None
        [after] = evaluate(minilm, data).rows
    assert (after.errors, after.metrics["recall@10"]) == (0, 1)


def test_a_pair_with_a_failed_text_is_left_out() -> None:
    data = Pairs.of([("a", "a", 3), ("b", " ", 9), ("b", "c", 1), ("d", None, 5)])
    with InMemoryFleet() as minilm:
        [row] = evaluate(minilm, data).rows
    assert (row.errors, row.metrics) == (2, {"spearman": pytest.approx(1)})


def test_undefined_is_said() -> None:
    with InMemoryFleet() as minilm:
        found = evaluate(minilm, Pairs.of([("a", "a", 3), ("b", "b", 9)]))
    assert found.rows[0].metrics == {"spearman": None}
    assert "undefined" in table(found)


def test_the_table_has_what_differs(fleet: InMemoryFleet, data: Retrieval) -> None:
    said = table(evaluate(fleet, data, [EmbedSettings(dimensions=64), EmbedSettings(dimensions=32)]))
    title, header, *rows = said.splitlines()
    assert title == f"{QWEN}: 120 documents, 5 queries"
    assert header.split() == ["dimensions", "bytes", "ndcg@10", "of", "first", "recall@10", "recall@100", "errors"]
    assert [row.split()[:2] for row in rows] == [["64", "256"], ["32", "128"]]
    said = table(evaluate(fleet, data, [EmbedSettings(dimensions=64, encoding=e) for e in ("float32", "float16")]))
    assert "encoding" in said


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (EmbedSettings(dimensions=16), "gives 32 to 1024"),
        (EmbedSettings(input_type="query"), "Leave it out"),
        (EmbedSettings(prompt_name="nonsense"), "prompt_name='nonsense'"),
    ],
)
def test_what_the_model_cant_is_refused_before_anything_is_embedded(
    fleet: InMemoryFleet, data: Retrieval, settings: EmbedSettings, said: str
) -> None:
    with pytest.raises(SettingsError, match=said):
        evaluate(fleet, data, [EmbedSettings(), settings])
    assert not list(Path(fleet.settings.store or "").glob("j-*"))


def test_settings_to_try() -> None:
    base = EmbedSettings(on_overflow="truncate")
    tried = parse_try("dimensions=128, encoding=float16", base)
    assert (tried.dimensions, tried.encoding, tried.on_overflow) == (128, "float16", "truncate")
    assert parse_try("instruction=Given a query, find it,dimensions=64", base).instruction == "Given a query, find it"
    assert parse_try("dimensions=64,instruction=x=1", base).instruction == "x=1"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("dimensions", "--try dimensions: NAME=VALUE was expected"),
        ("dimension=64", "unknown field 'dimension'. Settings are model, dimensions"),
        ("dimensions=many", "dimensions: Input should be a valid integer"),
        ("encoding=int8", "encoding: Input should be 'float32' or 'float16'"),
    ],
)
def test_what_cant_be_tried(text: str, said: str) -> None:
    with pytest.raises(SettingsError) as refused:
        parse_try(text, EmbedSettings())
    assert said in str(refused.value)


def test_the_plot(fleet: InMemoryFleet, data: Retrieval, tmp_path: Path) -> None:
    tries = [EmbedSettings(dimensions=d, encoding=e) for d in (64, 32) for e in ("float32", "float16")]
    found = evaluate(fleet, data, tries)
    for name, begins in (("plot.png", b"\x89PNG"), ("plot.svg", b"<?xml")):
        check_plot(str(tmp_path / name))
        plot(found, str(tmp_path / name))
        assert (tmp_path / name).read_bytes().startswith(begins)
    drawn = (tmp_path / "plot.svg").read_text()
    for label in ("dimensions", "ndcg@10 · float16", "recall@100 · float32"):
        assert f"<!-- {label} -->" in drawn


@pytest.mark.parametrize(
    ("name", "said"), [("plot.pdf", "must end in .png or .svg"), ("no/plot.png", "no such folder")]
)
def test_a_plot_that_cant_be_written(tmp_path: Path, name: str, said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        check_plot(str(tmp_path / name))


# MTEB


def task(prompt: Any) -> Any:
    return SimpleNamespace(name="Task", prompt=prompt)


def encoded_as(fleet: InMemoryFleet, kind: str | None, prompt: Any, settings: EmbedSettings | None = None) -> Any:
    encoder = FleetEncoder(fleet, settings)
    prompt_type: Any = SimpleNamespace(value=kind) if kind else None
    vectors = encoder.encode(
        [{"text": ["b", "a"]}, {"text": ["b"]}],
        task_metadata=task(prompt),
        hf_split="",
        hf_subset="",
        prompt_type=prompt_type,
    )
    assert vectors.shape[0] == 3
    assert (vectors[0] == vectors[2]).all()
    assert (vectors[0] != vectors[1]).any()
    [job] = encoder._embedding.jobs.values()
    return job.spec.settings.input_type, job.spec.settings.instruction


def test_a_task_for_mteb_is_embedded_as_its_model_wants(fleet: InMemoryFleet) -> None:
    prompt = {"query": "Find it"}
    assert encoded_as(fleet, "query", prompt) == ("query", "Find it")
    assert encoded_as(fleet, "document", prompt) == ("document", None)
    assert encoded_as(fleet, None, "Cluster it") == ("query", "Cluster it")
    assert encoded_as(fleet, "query", prompt, EmbedSettings(instruction="Mine")) == ("query", "Mine")
    assert encoded_as(fleet, "document", prompt, EmbedSettings(instruction="Mine")) == ("document", None)
    with InMemoryFleet() as minilm:
        assert encoded_as(minilm, "query", prompt) == ("query", None)
        assert encoded_as(minilm, None, prompt) == ("document", None)
        assert encoded_as(minilm, None, prompt, EmbedSettings(input_type="query")) == ("query", None)


def test_mteb_gets_no_vector_that_is_none(fleet: InMemoryFleet) -> None:
    with pytest.raises(TextError, match=r"Task: 1 of 2 texts have no vector \(empty 1\)"):
        FleetEncoder(fleet).encode([{"text": ["a", ""]}], task_metadata=task("x"), hf_split="", hf_subset="")
