"""A FastAPI application whose documents are embedded by a fleet, and searched. How to run it: ../README.md."""

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any

import numpy as np
from fastapi import Depends, FastAPI, Header, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field

from embedfleet import AsyncFleet, EmbedSettings
from embedfleet.errors import InputError, JobMismatch, NotFound, Retryable, TextError, WaitTimeout

QUERY = EmbedSettings(input_type="query")
SEARCH_TIMEOUT_S = 10.0
log = logging.getLogger(__name__)


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[dict[str, AsyncFleet]]:
    """One fleet a process. The server has forked its workers by now, so nothing is shared between them."""
    async with AsyncFleet() as fleet:  # EMBEDFLEET_BROKER_URL, EMBEDFLEET_STORE, …
        yield {"fleet": fleet}


app = FastAPI(lifespan=lifespan)


async def this_fleet(request: Request) -> AsyncFleet:
    """The process's fleet."""
    fleet: AsyncFleet = request.state.fleet
    return fleet


TheFleet = Annotated[AsyncFleet, Depends(this_fleet)]
Key = Annotated[str | None, Header()]


class Document(BaseModel):
    """What is embedded."""

    id: str = Field(min_length=1, max_length=200)
    text: str = Field(min_length=1)


@app.post("/documents", status_code=202)
async def add(
    documents: Annotated[list[Document], Field(min_length=1)], fleet: TheFleet, idempotency_key: Key = None
) -> dict[str, str]:
    """Queue documents. A caller that got no answer repeats the request with its Idempotency-Key: it is one job."""
    # With several customers put the customer into the key; it is what a job's id is made of.
    texts, ids = [document.text for document in documents], [document.id for document in documents]
    job = await fleet.enqueue(texts, ids=ids, key=idempotency_key or None)
    return {"job": job.id}


@app.get("/documents/{job}")
async def status(job: str, fleet: TheFleet) -> dict[str, Any]:
    """Where the job is. The workers go on whether or not anybody asks."""
    seen = await (await fleet.job(job)).status()
    return {"state": seen.state, "embedded": seen.totals.texts - seen.totals.errors, "errors": seen.totals.errors}


@app.get("/documents/{job}/search")
async def search(job: str, q: str, fleet: TheFleet) -> dict[str, list[str]]:
    """Ids of a job's documents, nearest first. More than a few belong in a vector store: `deliver_to=`."""
    rows = [row async for row in (await fleet.job(job)).rows() if row["error"] is None]
    vectors = await fleet.embed([q], settings=QUERY, timeout_s=SEARCH_TIMEOUT_S)
    scores = [np.dot(vectors[0], row["embedding"]) for row in rows]
    return {"nearest": [rows[index]["id"] for index in np.argsort(scores)[::-1][:10]]}


@app.exception_handler(Retryable)
@app.exception_handler(WaitTimeout)
async def unavailable(request: Request, error: Exception) -> JSONResponse:
    """The broker, the store or the workers are away. The error names them: that is for our log, not for the caller."""
    log.error("%s %s: %s", request.method, request.url.path, error)
    return JSONResponse({"detail": "Embedding is unavailable; try again."}, 503, {"Retry-After": "5"})


@app.exception_handler(NotFound)
async def not_found(_: Request, __: Exception) -> JSONResponse:
    """No such job."""
    return JSONResponse({"detail": "There is no such job."}, 404)


@app.exception_handler(JobMismatch)
async def mismatch(_: Request, __: Exception) -> JSONResponse:
    """The key was used before, for other documents."""
    return JSONResponse({"detail": "This Idempotency-Key was used for other documents."}, 409)


@app.exception_handler(InputError)
@app.exception_handler(TextError)
async def refused(_: Request, error: Exception) -> JSONResponse:
    """Too much at once, an id that comes twice, a query without a vector: the error says which."""
    return JSONResponse({"detail": str(error)}, 422)
