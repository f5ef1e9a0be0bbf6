"""A Flask application whose documents are embedded by a fleet, and searched. How to run it: ../README.md."""

from functools import cache
from typing import Any

import numpy as np
from flask import Flask, request
from pydantic import BaseModel, Field, TypeAdapter, ValidationError

from embedfleet import EmbedSettings, Fleet
from embedfleet.errors import InputError, JobMismatch, NotFound, Retryable, TextError, WaitTimeout

QUERY = EmbedSettings(input_type="query")
SEARCH_TIMEOUT_S = 10.0
app = Flask(__name__)

Answer = tuple[dict[str, Any], int]


@cache
def fleet() -> Fleet:
    """One fleet a process, for all its threads: EMBEDFLEET_BROKER_URL, EMBEDFLEET_STORE, …

    Made by the first request, not at import: under `gunicorn --preload` the parent imports this and forks, and the
    threads of a store's driver (S3) do not live on in a child.
    """
    return Fleet()


class Document(BaseModel):
    """What is embedded."""

    id: str = Field(min_length=1, max_length=200)
    text: str = Field(min_length=1)


DOCUMENTS = TypeAdapter(list[Document])


@app.post("/documents")
def add() -> Answer:
    """Queue documents. A caller that got no answer repeats the request with its Idempotency-Key: it is one job."""
    documents = DOCUMENTS.validate_json(request.get_data())
    texts, ids = [document.text for document in documents], [document.id for document in documents]
    # With several customers put the customer into the key; it is what a job's id is made of.
    job = fleet().enqueue(texts, ids=ids, key=request.headers.get("Idempotency-Key") or None)
    return {"job": job.id}, 202


@app.get("/documents/<job>")
def status(job: str) -> Answer:
    """Where the job is. The workers go on whether or not anybody asks."""
    seen = fleet().job(job).status()
    return {"state": seen.state, "embedded": seen.totals.texts - seen.totals.errors, "errors": seen.totals.errors}, 200


@app.get("/documents/<job>/search")
def search(job: str) -> Answer:
    """Ids of a job's documents, nearest first. More than a few belong in a vector store: `deliver_to=`."""
    rows = [row for row in fleet().job(job).rows() if row["error"] is None]
    vector = fleet().embed([request.args["q"]], settings=QUERY, timeout_s=SEARCH_TIMEOUT_S)[0]
    scores = [np.dot(vector, row["embedding"]) for row in rows]
    return {"nearest": [rows[index]["id"] for index in np.argsort(scores)[::-1][:10]]}, 200


@app.errorhandler(Retryable)
@app.errorhandler(WaitTimeout)
def unavailable(error: Exception) -> tuple[dict[str, Any], int, dict[str, str]]:
    """The broker, the store or the workers are away. The error names them: that is for our log, not for the caller."""
    app.logger.error("%s %s: %s", request.method, request.path, error)
    return {"detail": "Embedding is unavailable; try again."}, 503, {"Retry-After": "5"}


@app.errorhandler(NotFound)
def not_found(_: Exception) -> Answer:
    """No such job."""
    return {"detail": "There is no such job."}, 404


@app.errorhandler(JobMismatch)
def mismatch(_: Exception) -> Answer:
    """The key was used before, for other documents."""
    return {"detail": "This Idempotency-Key was used for other documents."}, 409


@app.errorhandler(InputError)
@app.errorhandler(TextError)
def refused(error: Exception) -> Answer:
    """Too much at once, an id that comes twice, a query without a vector: the error says which."""
    return {"detail": str(error)}, 422


@app.errorhandler(ValidationError)
def invalid(error: ValidationError) -> Answer:
    """Not a list of documents."""
    return {"detail": error.errors(include_url=False, include_input=False)}, 422
