"""The prompt each model was trained on, to the character and to the token."""

import dataclasses
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from embedfleet.contract import EmbedSettings
from embedfleet.models import DEFAULT_MODEL, profile_of, resolve
from embedfleet.profiles import PROFILES
from embedfleet_worker.prompts import render
from embedfleet_worker.tokens import Tokeniser
from tests import qwen_bpe
from tests.tiny_qwen3 import END, EOS

QWEN = "Qwen/Qwen3-Embedding-0.6B"
TEXT = "what is a lease?"
QWEN_QUERY = (
    "Instruct: Given a web search query, retrieve relevant passages that answer the query\nQuery:what is a lease?"
)
E5_QUERY = (
    "Instruct: Given a web search query, retrieve relevant passages that answer the query\nQuery: what is a lease?"
)
BGE_QUERY = "Represent this sentence for searching relevant passages: what is a lease?"

# Written out, from the model cards: the query's, then the document's.
GOLDEN = {
    "sentence-transformers/all-MiniLM-L6-v2": ("what is a lease?", "what is a lease?"),
    "Qwen/Qwen3-Embedding-0.6B": (QWEN_QUERY, "what is a lease?"),
    "Qwen/Qwen3-Embedding-4B": (QWEN_QUERY, "what is a lease?"),
    "Qwen/Qwen3-Embedding-8B": (QWEN_QUERY, "what is a lease?"),
    "BAAI/bge-small-en-v1.5": (BGE_QUERY, "what is a lease?"),
    "BAAI/bge-base-en-v1.5": (BGE_QUERY, "what is a lease?"),
    "BAAI/bge-large-en-v1.5": (BGE_QUERY, "what is a lease?"),
    "BAAI/bge-m3": ("what is a lease?", "what is a lease?"),
    "intfloat/multilingual-e5-small": ("query: what is a lease?", "passage: what is a lease?"),
    "intfloat/multilingual-e5-base": ("query: what is a lease?", "passage: what is a lease?"),
    "intfloat/multilingual-e5-large": ("query: what is a lease?", "passage: what is a lease?"),
    "intfloat/multilingual-e5-large-instruct": (E5_QUERY, "what is a lease?"),
}

BY_NAME = {
    "query": "Instruct: Given a web search query, retrieve relevant passages that answer the query\nQuery:fn",
    "retrieval": "Instruct: Given a web search query, retrieve relevant passages that answer the query\nQuery:fn",
    "code": (
        "Instruct: Given a question about coding, retrieval code or passage that can solve user's question\nQuery:fn"
    ),
    "legal": "Instruct: Identifying the most relevant statutes for a given situation\nQuery:fn",
    "bitext": "Instruct: Retrieve parallel sentences\nQuery:fn",
    "classification": "Instruct: Given a text, classify its topic\nQuery:fn",
    "clustering": "Instruct: Identify the category of documents\nQuery:fn",
}


def prompt(model: str, text: str = TEXT, **settings: object) -> str:
    return render(text, resolve(EmbedSettings(**settings), model), profile_of(model))


# Characters


def test_no_profile_is_without_a_golden_prompt() -> None:
    assert list(GOLDEN) == list(PROFILES)


@pytest.mark.parametrize("model", GOLDEN)
def test_the_prompts_of_each_model(model: str) -> None:
    assert (prompt(model, input_type="query"), prompt(model, input_type="document")) == GOLDEN[model]


@pytest.mark.parametrize("model", [name for name in PROFILES if name.startswith("Qwen/")])
def test_an_instruction_of_ones_own(model: str) -> None:
    found = prompt(model, input_type="query", instruction="Find the clause that answers")
    assert found == "Instruct: Find the clause that answers\nQuery:what is a lease?"


@pytest.mark.parametrize("name", BY_NAME)
def test_a_prompt_by_name(name: str) -> None:
    assert prompt(QWEN, "fn", input_type="query", prompt_name=name) == BY_NAME[name]


def test_the_names_are_the_same_for_every_model_that_takes_instructions() -> None:
    for profile in PROFILES.values():
        assert list(profile.instructions) == (list(BY_NAME) if profile.takes_instruction else [])


def test_a_prompt_by_name_of_e5() -> None:
    found = prompt("intfloat/multilingual-e5-large-instruct", input_type="query", prompt_name="bitext")
    assert found == "Instruct: Retrieve parallel sentences.\nQuery: what is a lease?"


def test_the_folder_of_a_model_gives_the_prompts_of_its_files(tiny_qwen3: Path) -> None:
    assert prompt(str(tiny_qwen3), input_type="query") == QWEN_QUERY
    assert prompt(str(tiny_qwen3)) == TEXT


@given(st.text(), st.text().filter(lambda text: text.strip()))
def test_braces_and_whatever_else_is_in_a_text_or_instruction_stay_as_they_are(text: str, instruction: str) -> None:
    assert prompt(QWEN, text, input_type="query", instruction=instruction) == f"Instruct: {instruction}\nQuery:{text}"
    assert prompt(QWEN, text) == text
    assert prompt(QWEN, "{text} {instruction}", input_type="query").endswith("Query:{text} {instruction}")


# Tokens

QWEN_IDS = {
    "document": [12555, 374, 264, 25064, 30, 151643],
    "query": [
        # Instruct: Given a web search query, retrieve relevant passages that answer the query
        *(641, 1235, 25, 16246, 264, 3482, 2711, 3239, 11, 17179, 9760, 46769, 429, 4226, 279, 3239, 198),
        # Query:what is a lease?<|endoftext|>
        *(2859, 25, 12555, 374, 264, 25064, 30, 151643),
    ],
}


@pytest.fixture(scope="module")
def qwen() -> Tokenizer:
    return qwen_bpe.build()


@pytest.mark.parametrize("input_type", QWEN_IDS)
def test_the_tokens_of_qwen(qwen: Tokenizer, input_type: str) -> None:
    assert qwen.encode(prompt(QWEN, input_type=input_type)).ids == QWEN_IDS[input_type]


def test_a_space_more_after_the_colon_would_be_another_token(qwen: Tokenizer) -> None:
    """`what` is 12555 and ` what` 1128: the profile's template has to be the one without."""
    spaced = PROFILES[QWEN].query_template.replace("Query:", "Query: ")
    profile = dataclasses.replace(PROFILES[QWEN], query_template=spaced)
    settings = resolve(EmbedSettings(input_type="query"), QWEN)
    assert 12555 in qwen.encode(render(TEXT, settings, PROFILES[QWEN])).ids
    assert 1128 in qwen.encode(render(TEXT, settings, profile)).ids


def test_qwens_tokens_of_other_languages(qwen: Tokenizer) -> None:
    found = qwen.encode("Ein Pachtvertrag läuft 30 Jahre. 租赁期为三十年。🏠").ids
    german = [53750, 393, 15938, 423, 52015, 30005, 89131, 220, 18, 15, 48015, 13]
    assert found == [*german, 75671, 253, 101331, 22704, 17714, 114264, 1773, 145574, 151643]


def test_qwens_end_is_not_what_ends_a_chat(qwen: Tokenizer) -> None:
    """Last-token pooling rests on it, and ``tokenizer.eos_token`` is the other one."""
    assert (qwen.token_to_id("<|endoftext|>"), qwen.token_to_id("<|im_end|>")) == (151643, 151645)
    for text in ("", TEXT, TEXT * 100):
        qwen.enable_truncation(20)
        assert qwen.encode(text).ids[-1] == 151643
        qwen.no_truncation()


@pytest.mark.parametrize("text", ["a", TEXT, "a long text " * 500])
@pytest.mark.parametrize("input_type", ["query", "document"])
def test_every_prompt_ends_with_the_end_token_whole_or_cut(tiny_qwen3: Path, input_type: str, text: str) -> None:
    """Through what a worker does, with the tiny Qwen's template, which is the real one's."""
    rendered = prompt(str(tiny_qwen3), text, input_type=input_type)
    (found,) = Tokeniser(tiny_qwen3, 200).encode([rendered], truncate=True)
    vocabulary = Tokenizer.from_file(str(tiny_qwen3 / "tokenizer.json")).get_vocab()
    assert found.ids[-1] == vocabulary[END]
    assert vocabulary[EOS] not in found.ids
    assert len(found.ids) <= 200


def test_one_space_more_would_be_other_tokens(tiny_qwen3: Path) -> None:
    tokenizer = Tokenizer.from_file(str(tiny_qwen3 / "tokenizer.json"))
    right = prompt(str(tiny_qwen3), input_type="query")
    assert tokenizer.encode(right).ids != tokenizer.encode(right.replace("Query:", "Query: ")).ids


BERT_IDS = {
    "BAAI/bge-small-en-v1.5": [
        *(101, 5050, 2023, 6251, 2005, 6575, 7882, 13768, 1024),  # [CLS] represent this … passages :
        *(2054, 2003, 1037, 10084, 1029, 102),  # what is a lease ? [SEP]
    ],
    DEFAULT_MODEL: [101, 2054, 2003, 1037, 10084, 1029, 102],
}


@pytest.mark.parametrize("model", BERT_IDS)
def test_the_tokens_of_berts_vocabulary(minilm: Path, model: str) -> None:
    """MiniLM's, which BGE's English models share: [CLS] first, for pooling, and [SEP] at the end."""
    (found,) = Tokeniser(minilm, 256).encode([prompt(model, input_type="query")], truncate=False)
    assert found.ids == BERT_IDS[model]


def test_a_bert_prompt_keeps_both_ends_when_it_is_cut(minilm: Path) -> None:
    rendered = prompt("BAAI/bge-small-en-v1.5", TEXT * 50, input_type="query")
    (found,) = Tokeniser(minilm, 16).encode([rendered], truncate=True)
    assert found.ids[:12] == BERT_IDS["BAAI/bge-small-en-v1.5"][:12]
    assert (len(found.ids), found.ids[-1]) == (16, 102)
