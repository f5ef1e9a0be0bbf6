"""A Django project in one file whose documents are embedded by a fleet, and searched. How to run it: ../README.md."""

import logging
import sys
from collections.abc import Callable
from functools import cache

import numpy as np
from django.conf import settings
from django.core.management import execute_from_command_line
from django.core.wsgi import get_wsgi_application
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.urls import path
from django.views.decorators.http import require_GET, require_POST
from pydantic import BaseModel, Field, TypeAdapter, ValidationError

from embedfleet import EmbedSettings, Fleet
from embedfleet.errors import InputError, JobMismatch, NotFound, Retryable, TextError, WaitTimeout

QUERY = EmbedSettings(input_type="query")
SEARCH_TIMEOUT_S = 10.0
log = logging.getLogger(__name__)


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


@require_POST
def add(request: HttpRequest) -> HttpResponse:
    """Queue documents. A caller that got no answer repeats the request with its Idempotency-Key: it is one job."""
    documents = DOCUMENTS.validate_json(request.body)
    texts, ids = [document.text for document in documents], [document.id for document in documents]
    # With several customers put the customer into the key; it is what a job's id is made of.
    job = fleet().enqueue(texts, ids=ids, key=request.headers.get("Idempotency-Key") or None)
    return JsonResponse({"job": job.id}, status=202)


@require_GET
def status(_: HttpRequest, job: str) -> HttpResponse:
    """Where the job is. The workers go on whether or not anybody asks."""
    seen = fleet().job(job).status()
    embedded = seen.totals.texts - seen.totals.errors
    return JsonResponse({"state": seen.state, "embedded": embedded, "errors": seen.totals.errors})


@require_GET
def search(request: HttpRequest, job: str) -> HttpResponse:
    """Ids of a job's documents, nearest first. More than a few belong in a vector store: `deliver_to=`."""
    rows = [row for row in fleet().job(job).rows() if row["error"] is None]
    vector = fleet().embed([request.GET.get("q", "")], settings=QUERY, timeout_s=SEARCH_TIMEOUT_S)[0]
    scores = [np.dot(vector, row["embedding"]) for row in rows]
    return JsonResponse({"nearest": [rows[index]["id"] for index in np.argsort(scores)[::-1][:10]]})


class Errors:
    """What a fleet raises, as an HTTP status, for every view."""

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponse]) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        """Nothing to do while all goes well."""
        return self.get_response(request)

    def process_exception(self, request: HttpRequest, error: Exception) -> HttpResponse | None:
        """None: it is none of ours."""
        if isinstance(error, Retryable | WaitTimeout):  # it names the broker: for our log, not for the caller
            log.error("%s %s: %s", request.method, request.path, error)
            return _answer("Embedding is unavailable; try again.", 503, {"Retry-After": "5"})
        if isinstance(error, NotFound):
            return _answer("There is no such job.", 404)
        if isinstance(error, JobMismatch):
            return _answer("This Idempotency-Key was used for other documents.", 409)
        if isinstance(error, InputError | TextError):  # too much at once, an id that comes twice, a blank query
            return _answer(str(error), 422)
        if isinstance(error, ValidationError):
            return _answer(error.errors(include_url=False, include_input=False), 422)
        return None


def _answer(detail: object, status: int, headers: dict[str, str] | None = None) -> HttpResponse:
    return JsonResponse({"detail": detail}, status=status, headers=headers)


urlpatterns = [
    path("documents", add),
    path("documents/<str:job>", status),
    path("documents/<str:job>/search", search),
]

# An interface for programs, without sessions: nothing a browser could be made to send on somebody's behalf.
settings.configure(ROOT_URLCONF=__name__, ALLOWED_HOSTS=["127.0.0.1"], MIDDLEWARE=[f"{__name__}.Errors"])
application = get_wsgi_application()

if __name__ == "__main__":
    execute_from_command_line(sys.argv)
