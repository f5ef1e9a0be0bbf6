"""Prompts, character for character: the tokens of another spelling are others, and so are the vectors."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from embedfleet.contract import EmbedSettings
from embedfleet.models import DEFAULT_MODEL, profile_of, resolve
from embedfleet.profiles import PROFILES
from embedfleet_worker.prompts import render

QWEN = "Qwen/Qwen3-Embedding-8B"
GOLDEN = {
    ("query", "Find the clause"): "Instruct: Find the clause\nQuery:what is a lease?",
    ("query", None): (
        "Instruct: Given a web search query, retrieve relevant passages that answer the query\nQuery:what is a lease?"
    ),
    ("document", None): "what is a lease?",
}


def prompt(model: str, text: str = "what is a lease?", **settings: object) -> str:
    return render(text, resolve(EmbedSettings(**settings), model), profile_of(model))


@pytest.mark.parametrize(("input_type", "instruction"), GOLDEN)
@pytest.mark.parametrize("model", [name for name in PROFILES if name.startswith("Qwen/")])
def test_qwen_prompts(model: str, input_type: str, instruction: str | None) -> None:
    expected = GOLDEN[input_type, instruction]
    assert prompt(model, input_type=input_type, instruction=instruction) == expected


def test_qwen_has_no_space_after_the_colon() -> None:
    found = prompt(QWEN, input_type="query")
    assert "\nQuery:what" in found
    assert "Query: " not in found


def test_one_space_more_would_be_other_tokens(tiny_qwen3: Path) -> None:
    tokenizer = Tokenizer.from_file(str(tiny_qwen3 / "tokenizer.json"))
    right = prompt(str(tiny_qwen3), input_type="query")
    assert tokenizer.encode(right).ids != tokenizer.encode(right.replace("Query:", "Query: ")).ids


def test_a_prompt_by_name_is_its_instruction() -> None:
    assert prompt(QWEN, input_type="query", prompt_name="query") == prompt(QWEN, input_type="query")


@pytest.mark.parametrize("input_type", ["query", "document"])
def test_minilm_takes_every_text_as_it_is(input_type: str) -> None:
    assert prompt(DEFAULT_MODEL, input_type=input_type) == "what is a lease?"


def test_the_folder_of_a_model_gives_the_prompts_of_its_files(tiny_qwen3: Path) -> None:
    assert prompt(str(tiny_qwen3), input_type="query") == GOLDEN["query", None]
    assert prompt(str(tiny_qwen3)) == GOLDEN["document", None]


@given(st.text(), st.text().filter(lambda text: text.strip()))
def test_braces_and_whatever_else_is_in_a_text_or_instruction_stay_as_they_are(text: str, instruction: str) -> None:
    assert prompt(QWEN, text, input_type="query", instruction=instruction) == f"Instruct: {instruction}\nQuery:{text}"
    assert prompt(QWEN, text) == text
    assert prompt(QWEN, "{text} {instruction}", input_type="query").endswith("Query:{text} {instruction}")
