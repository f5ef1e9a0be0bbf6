"""The profiles of the models that are known by name: data. What a profile is, and how one is found, is in models.py.

Source: each model's card and files on its hub. Numbers of weights are those that the shapes in config.json give; the
instructions by name are, where there are such, those of the model's own evaluation.
"""

from embedfleet import golden
from embedfleet.models import DEFAULT_MODEL, ModelProfile

QWEN_TEMPLATE = "Instruct: {instruction}\nQuery:{text}"  # no space after the colon: the tokens differ
E5_TEMPLATE = "Instruct: {instruction}\nQuery: {text}"  # with one

_WEB_SEARCH = "Given a web search query, retrieve relevant passages that answer the query"
# Of the tasks in Qwen3-Embedding's evaluation those whose wording is not about one data set.
_QWEN_INSTRUCTIONS = {
    "query": _WEB_SEARCH,
    "retrieval": _WEB_SEARCH,
    "code": "Given a question about coding, retrieval code or passage that can solve user's question",
    "legal": "Identifying the most relevant statutes for a given situation",
    "bitext": "Retrieve parallel sentences",
    "classification": "Given a text, classify its topic",
    "clustering": "Identify the category of documents",
}
# Its evaluation has bitext (with a full stop); code, legal and the general wordings are ours.
_E5_INSTRUCTIONS = {
    "query": _WEB_SEARCH,
    "retrieval": _WEB_SEARCH,
    "code": "Given a question about code, retrieve code or passages that answer the question",
    "legal": "Given a legal situation, retrieve the statutes that are most relevant to it",
    "bitext": "Retrieve parallel sentences.",
    "classification": "Classify the topic of the given text",
    "clustering": "Identify the topic or theme of the given text",
}


def _qwen(size: str, dimensions: int, parameters: int) -> ModelProfile:
    return ModelProfile(
        name=f"Qwen/Qwen3-Embedding-{size}",
        dimensions=dimensions,
        max_tokens=32_768,
        pooling="last",
        parameters=parameters,
        query_template=QWEN_TEMPLATE,
        instructions=_QWEN_INSTRUCTIONS,
        min_dimensions=32,
        dtypes=("bfloat16", "float32"),  # float16 overflows to NaN on some inputs
    )


def _bge(size: str, dimensions: int, parameters: int) -> ModelProfile:
    return ModelProfile(
        name=f"BAAI/bge-{size}-en-v1.5",
        dimensions=dimensions,
        max_tokens=512,
        pooling="cls",
        parameters=parameters,
        query_template="Represent this sentence for searching relevant passages: {text}",
    )


def _e5(size: str, dimensions: int, parameters: int) -> ModelProfile:
    return ModelProfile(
        name=f"intfloat/multilingual-e5-{size}",
        dimensions=dimensions,
        max_tokens=512,  # XLM-RoBERTa's 514 positions begin behind the padding token's
        pooling="mean",
        parameters=parameters,
        query_template="query: {text}",
        document_template="passage: {text}",
    )


PROFILES = {
    profile.name: profile
    for profile in (
        ModelProfile(
            name=DEFAULT_MODEL,
            dimensions=384,
            max_tokens=256,  # sentence_bert_config.json, not the 512 positions the network has
            pooling="mean",
            parameters=22_713_216,
            golden=golden.MINILM,
        ),
        _qwen("0.6B", 1024, 595_776_512),
        _qwen("4B", 2560, 4_021_774_336),
        _qwen("8B", 4096, 7_567_295_488),
        _bge("small", 384, 33_360_000),
        _bge("base", 768, 109_482_240),
        _bge("large", 1024, 335_141_888),
        ModelProfile(  # dense vectors only; its queries need no instruction
            name="BAAI/bge-m3", dimensions=1024, max_tokens=8192, pooling="cls", parameters=567_754_752
        ),
        _e5("small", 384, 117_653_760),
        _e5("base", 768, 278_043_648),
        _e5("large", 1024, 559_890_432),
        ModelProfile(
            name="intfloat/multilingual-e5-large-instruct",
            dimensions=1024,
            max_tokens=512,
            pooling="mean",
            parameters=559_890_432,
            query_template=E5_TEMPLATE,
            instructions=_E5_INSTRUCTIONS,
        ),
    )
}
