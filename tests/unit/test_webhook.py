"""The webhook against a real receiver: what arrives, what each answer means, and that nothing holds a delivery up."""

import base64
import json
import logging
import re
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import httpcore2
import pytest
import standardwebhooks

from embedfleet.destinations import Webhook
from embedfleet.errors import ConfigurationError, DestinationRefused, DestinationUnavailable, EmbedfleetError
from embedfleet.folder import Folder
from embedfleet.jobfolder import JobFolder
from embedfleet.settings import load
from embedfleet.tables import Outcomes, write_part
from embedfleet_worker.destinations import webhook
from embedfleet_worker.destinations.base import Parcel
from embedfleet_worker.destinations.webhook import WebhookDestination
from tests.contract.documents import DOCUMENTS, JOB, OUTCOMES
from tests.receiver import Answer, Receiver, drip, flood, hang, raw, receiver, reset, status
from tests.unit.network import Authority, Names

SECRET = "whsec_" + base64.b64encode(bytes(range(32))).decode()


def parcel_of(store: Folder, outcomes: Outcomes) -> Parcel:
    folder = JobFolder(store, JOB)
    folder.write_once("job.json", DOCUMENTS["job-v1.json"].dumps())
    folder.write_part(7, write_part(outcomes, "float32", JOB, 7))
    return Parcel(folder, 7, "webhook-46224dcc")


@pytest.fixture
def parcel(store: Folder) -> Parcel:
    return parcel_of(store, OUTCOMES)


@pytest.fixture
def server() -> Iterator[Receiver]:
    with receiver() as running:
        yield running


@pytest.fixture
def open_destination() -> Iterator[Callable[..., WebhookDestination]]:
    """Make destinations; all are closed at the end."""
    opened: list[WebhookDestination] = []

    def make(*origins: str, networks: str = "127.0.0.1", secret: str | None = SECRET) -> WebhookDestination:
        settings = load(webhook_secret=secret, webhook_origins=",".join(origins), webhook_networks=networks)
        opened.append(WebhookDestination(settings))
        return opened[-1]

    yield make
    for destination in opened:
        destination.close()


@pytest.fixture
def deliver(
    open_destination: Callable[..., WebhookDestination], server: Receiver, parcel: Parcel
) -> Callable[[Answer], str]:
    """Deliver to the server, which gives this answer."""
    destination = open_destination(server.url.removesuffix("/hook"))

    def to_server(answer: Answer) -> str:
        server.answer = answer
        return destination.deliver(Webhook(url=server.url + "?token=s3cret"), parcel)

    return to_server


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> Names:
    return Names(monkeypatch)


@pytest.fixture
def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bounds, made short."""
    monkeypatch.setattr(webhook, "_CONNECT_S", 0.5)
    monkeypatch.setattr(webhook, "_WHOLE_S", 1.0)


# What arrives


def test_a_reference_to_the_part_arrives_signed(deliver: Callable[..., str], server: Receiver, parcel: Parcel) -> None:
    assert deliver(status(200)) == f"127.0.0.1:{server.port} answered 200"
    [request] = server.received
    event = standardwebhooks.Webhook(SECRET).verify(request.body, request.headers)
    assert request.headers["webhook-id"] == f"{JOB}-00000007-webhook-46224dcc"
    assert request.headers["host"] == f"127.0.0.1:{server.port}"
    assert request.path == "/hook?token=s3cret"
    assert event == {
        "type": "embedfleet.batch.embedded",
        "data": {
            "job": JOB,
            "batch": 7,
            "folder": parcel.folder.uri,
            "part": f"{parcel.folder.uri}/parts/00000007.parquet",
            "texts": 3,
            "errors": 1,
            "cached": 1,
            "truncated": 1,
            "tokens": 8,
            "model": "sentence-transformers/all-MiniLM-L6-v2",
            "dimensions": 4,
        },
    }


def test_an_ipv6_address_stands_in_brackets(
    open_destination: Callable[..., WebhookDestination], server: Receiver, parcel: Parcel, names: Names
) -> None:
    names.answers["::1"] = [["127.0.0.1"]]  # so that it needs no IPv6 here
    url = f"http://[::1]:{server.port}"
    open_destination(url).deliver(Webhook(url=url), parcel)
    assert server.received[0].headers["host"] == f"[::1]:{server.port}"
    assert server.received[0].path == "/"


@pytest.mark.parametrize("changed", ["body", "webhook-id", "webhook-timestamp"])
def test_the_signature_is_over_id_time_and_body(deliver: Callable[..., str], server: Receiver, changed: str) -> None:
    deliver(status(200))
    [request] = server.received
    body, headers = request.body, dict(request.headers)
    if changed == "body":
        body += b" "
    else:
        headers[changed] = headers[changed][:-1] + ("1" if headers[changed][-1] != "1" else "2")
    with pytest.raises(standardwebhooks.WebhookVerificationError):
        standardwebhooks.Webhook(SECRET).verify(body, headers)


def test_every_try_is_the_same_but_for_its_time(
    deliver: Callable[..., str], server: Receiver, parcel: Parcel, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = time.time()
    for later_s in (0, 100):
        monkeypatch.setattr(time, "time", lambda later_s=later_s: now + later_s)
        parcel.__dict__.pop("info", None)  # another worker reads it anew
        deliver(status(204))
    first, second = server.received
    assert first.body == second.body
    assert first.headers["webhook-id"] == second.headers["webhook-id"]
    assert int(second.headers["webhook-timestamp"]) - int(first.headers["webhook-timestamp"]) == 100
    assert first.headers["webhook-signature"] != second.headers["webhook-signature"]
    assert server.connections == 1


def test_threads_share_a_destination(deliver: Callable[..., str], server: Receiver) -> None:
    with ThreadPoolExecutor(8) as pool:
        confirmed = list(pool.map(deliver, [status(200, b"{}")] * 40))
    assert len(confirmed) == len(server.received) == 40
    assert server.connections <= 8


def test_a_part_without_vectors_has_no_model(
    open_destination: Callable[..., WebhookDestination], server: Receiver, store: Folder
) -> None:
    parcel = parcel_of(store, Outcomes(OUTCOMES.rows[1:2], OUTCOMES.vectors[1:2]))
    open_destination(server.url.removesuffix("/hook")).deliver(Webhook(url=server.url), parcel)
    data = json.loads(server.received[0].body)["data"]
    assert data["model"] is data["dimensions"] is None
    assert data["texts"] == data["errors"] == 1


def test_what_the_documentation_shows_reads_what_arrives(deliver: Callable[..., str], server: Receiver) -> None:
    deliver(status(200))
    [request] = server.received
    document = Path(__file__).parents[2] / "docs" / "webhooks.md"
    [code] = re.findall(r"^```py\n(.*?)^```", document.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    namespace: dict[str, Any] = {"SECRET": SECRET}
    exec(compile(code, str(document), "exec"), namespace)
    vectors = namespace["received"](request.body, request.headers)
    assert vectors.column_names[:3] == ["id", "chunk", "embedding"]
    assert vectors["id"].to_pylist() == [row.id for row in OUTCOMES.rows]


# Secrets


@pytest.mark.parametrize(
    "secret",
    [
        None,
        "s3cret",
        SECRET.removeprefix("whsec_"),
        "whsec_" + "s3cr!" * 8,
        "whsec_" + "s3cr" * 7,
        "whsec_" + "s3cr" * 22,
    ],
)
def test_without_a_good_secret_nothing_is_sent(
    open_destination: Callable[..., WebhookDestination], server: Receiver, parcel: Parcel, secret: str | None
) -> None:
    destination = open_destination(server.url.removesuffix("/hook"), secret=secret)
    with pytest.raises(DestinationRefused, match="EMBEDFLEET_WEBHOOK_SECRET: whsec_ and 24 to 64") as refused:
        destination.deliver(Webhook(url=server.url), parcel)
    assert "s3cr" not in str(refused.value)
    assert server.connections == 0


def test_settings_that_are_wrong_are_refused_at_the_start(
    open_destination: Callable[..., WebhookDestination], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigurationError, match=r"EMBEDFLEET_WEBHOOK_ORIGINS: 'app\.example'"):
        open_destination("app.example")
    with pytest.raises(ConfigurationError, match="EMBEDFLEET_WEBHOOK_NETWORKS: '10/99'"):
        open_destination(networks="10/99")
    monkeypatch.setenv("SSL_CERT_FILE", "/nowhere")
    with pytest.raises(ConfigurationError, match="SSL_CERT_FILE"):
        open_destination()


# Answers


@pytest.mark.parametrize("code", [200, 201, 202, 204, 299])
def test_any_2xx_is_a_confirmation(deliver: Callable[..., str], code: int) -> None:
    assert deliver(status(code)).endswith(f"answered {code}")


@pytest.mark.parametrize("code", [300, 301, 302, 303, 304, 307, 308])
def test_redirects_are_not_followed(deliver: Callable[..., str], server: Receiver, code: int) -> None:
    with pytest.raises(DestinationRefused, match=f"answered {code}, and redirects are not followed"):
        deliver(status(code, location=server.url))
    assert len(server.received) == 1


def test_410_means_stop(deliver: Callable[..., str]) -> None:
    with pytest.raises(DestinationRefused, match="answered 410"):
        deliver(status(410))


def test_nothing_that_is_secret_is_logged(deliver: Callable[..., str], caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    with pytest.raises(DestinationUnavailable):
        deliver(status(500, b"a secret text"))
    assert "receive_response_body" in caplog.text
    for secret in ("s3cret", "a secret text", SECRET[6:]):
        assert secret not in caplog.text


@pytest.mark.parametrize("code", [400, 401, 403, 404, 408, 409, 422, 500, 502, 504])
def test_any_other_answer_is_tried_again(deliver: Callable[..., str], code: int) -> None:
    with pytest.raises(DestinationUnavailable, match=f"answered {code}") as unavailable:
        deliver(status(code, b"a secret text", Retry_After="7"))
    assert unavailable.value.retry_after_s is None
    assert "secret" not in str(unavailable.value)


def in_s(seconds: float) -> str:
    return format_datetime(datetime.now(UTC) + timedelta(seconds=seconds), usegmt=True)


RETRY_AFTER = {
    "7": 7, "0": 0, "3600": 3600, "3601": 3600, "9" * 5000: 3600, in_s(7200): 3600, in_s(1e6): 3600, in_s(-600): 0,
    "": None, "-1": None, "1.5": None, "1e3": None, "soon": None, "²": None, "Fri, 99 Nov 2026 00:00:00 GMT": None,
    "Sat, 21 Nov 99999 00:00:00 GMT": None, "Fri, 01 Jan 2100 00:00:00 -0000": 3600,
}  # fmt: skip


def _asked(value: object) -> str:
    return "a date" if "GMT" in str(value) else str(value)[:20]  # the same in every process that collects


@pytest.mark.parametrize("code", [429, 503])
@pytest.mark.parametrize(("asked", "wait_s"), RETRY_AFTER.items(), ids=_asked)
def test_the_receiver_says_when_to_come_again(
    deliver: Callable[..., str], code: int, asked: str, wait_s: float | None
) -> None:
    with pytest.raises(DestinationUnavailable, match=f"answered {code}") as unavailable:
        deliver(status(code, Retry_After=asked))
    assert unavailable.value.retry_after_s == (wait_s if wait_s is None else pytest.approx(wait_s, abs=30))


# No answers


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(hang, id="hangs"),
        pytest.param(drip(b""), id="drips a status line"),
        pytest.param(drip(b"HTTP/1.1 200 OK\r\nX-A: "), id="drips headers"),
        pytest.param(drip(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 100 Continue\r\nX-A: "), id="drips behind a 100"),
        pytest.param(reset, id="resets"),
        pytest.param(raw(b""), id="says nothing"),
        pytest.param(raw(b"a secret text\r\n\r\n"), id="speaks no HTTP"),
        pytest.param(raw(b"HTTP/1.1 200 OK\r\nX-A: " + b"a" * 200_000), id="endless headers"),
        pytest.param(raw(b"HTTP/1.1 101 Switching Protocols\r\n\r\n"), id="switches protocols"),
    ],
)
@pytest.mark.usefixtures("hurry")
def test_a_receiver_that_does_not_answer_is_tried_again(deliver: Callable[..., str], answer: Answer) -> None:
    started = time.monotonic()
    with pytest.raises(DestinationUnavailable, match=r"^webhook 127\.0\.0\.1:\d+: ") as unavailable:
        deliver(answer)
    assert time.monotonic() - started < 3
    assert unavailable.value.retry_after_s is None
    assert "secret" not in str(unavailable.value)
    assert "token" not in str(unavailable.value)
    assert deliver(status(200))


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(drip(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n"), id="drips"),
        pytest.param(raw(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nabc"), id="ends early"),
        pytest.param(raw(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n"), id="makes no sense"),
        pytest.param(status(200, b"abc", Content_Encoding="gzip"), id="is no gzip"),
        pytest.param(flood, id="is a gigabyte"),
    ],
)
@pytest.mark.usefixtures("hurry")
def test_the_status_counts_whatever_the_body(deliver: Callable[..., str], server: Receiver, answer: Answer) -> None:
    started = time.monotonic()
    assert deliver(answer).endswith("answered 200")
    assert time.monotonic() - started < 3
    assert server.sent_bytes < 64 * 2**20  # what the sockets' buffers hold
    assert deliver(status(200))


def test_nobody_listens(open_destination: Callable[..., WebhookDestination], parcel: Parcel) -> None:
    with receiver() as gone:
        url = gone.url
    destination = open_destination(url.removesuffix("/hook"))
    with pytest.raises(DestinationUnavailable, match="Connection refused"):
        destination.deliver(Webhook(url=url), parcel)


def _exceptions(module: Any) -> list[type[Exception]]:
    found = [getattr(module, name) for name in module.__all__]
    return [kind for kind in found if isinstance(kind, type) and issubclass(kind, Exception)]


@pytest.mark.parametrize("kind", [*_exceptions(httpcore2), OSError, TimeoutError, ssl.SSLError, ssl.CertificateError])
def test_every_error_of_the_client_is_mapped(
    deliver: Callable[..., str], monkeypatch: pytest.MonkeyPatch, kind: type[Exception]
) -> None:
    def fail(*_args: object, **_kwargs: object) -> None:
        raise kind("broken")

    monkeypatch.setattr(httpcore2.ConnectionPool, "handle_request", fail)
    with pytest.raises(DestinationUnavailable, match=r"^webhook 127\.0\.0\.1:"):
        deliver(status(200))


def test_proxies_and_passwords_of_the_environment_are_not_used(
    deliver: Callable[..., str], server: Receiver, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / ".netrc").write_text("machine 127.0.0.1 login me password s3cret\n")
    (tmp_path / ".netrc").chmod(0o600)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    deliver(status(200, Set_Cookie="a=b"))
    deliver(status(200))
    assert all({"authorization", "cookie"}.isdisjoint(request.headers) for request in server.received)


def test_what_is_not_allowed_is_refused_with_one_of_our_errors(
    open_destination: Callable[..., WebhookDestination], server: Receiver, parcel: Parcel
) -> None:
    with pytest.raises(DestinationRefused, match="https:// is needed"):
        open_destination().deliver(Webhook(url=server.url), parcel)
    with pytest.raises(DestinationRefused, match="not public"):
        open_destination(server.url.removesuffix("/hook"), networks="").deliver(Webhook(url=server.url), parcel)
    with pytest.raises(EmbedfleetError):
        open_destination().deliver(Webhook.model_construct(url="https://[::1"), parcel)
    assert server.connections == 0


# TLS


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("certificates"))


def test_the_name_is_in_tls_and_host_though_the_address_is_pinned(
    open_destination: Callable[..., WebhookDestination],
    parcel: Parcel,
    names: Names,
    authority: Authority,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.file))
    names.answers["app.example"] = [["127.0.0.1"], ["127.0.0.2"]]
    with receiver(authority.context("app.example")) as server:
        destination = open_destination()
        destination.deliver(Webhook(url=f"https://App.Example.:{server.port}/hook"), parcel)
        assert server.names == ["app.example"]
        assert server.received[0].headers["host"] == f"app.example:{server.port}"
    assert names.asked.count("app.example") == 1


@pytest.mark.parametrize(
    ("trusted", "name"), [(False, "app.example"), (True, "other.example"), (True, "*.app.example")], ids=str
)
def test_a_certificate_that_is_not_good_for_the_name_is_refused(
    open_destination: Callable[..., WebhookDestination],
    parcel: Parcel,
    names: Names,
    authority: Authority,
    monkeypatch: pytest.MonkeyPatch,
    trusted: bool,
    name: str,
) -> None:
    if trusted:
        monkeypatch.setenv("SSL_CERT_FILE", str(authority.file))
    names.answers["app.example"] = [["127.0.0.1"]]
    with receiver(authority.context(name)) as server:
        with pytest.raises(DestinationUnavailable, match=r"webhook app\.example:\d+: .*CERTIFICATE_VERIFY_FAILED"):
            open_destination().deliver(Webhook(url=f"https://app.example:{server.port}/hook"), parcel)
        assert server.received == []


@pytest.mark.usefixtures("hurry")
def test_a_receiver_that_hangs_in_tls_is_given_up(
    open_destination: Callable[..., WebhookDestination], parcel: Parcel, names: Names
) -> None:
    names.answers["app.example"] = [["127.0.0.1"]]
    with socket.create_server(("127.0.0.1", 0)) as silent:  # the system takes the connection, nobody else
        url = f"https://app.example:{silent.getsockname()[1]}/hook"
        started = time.monotonic()
        with pytest.raises(DestinationUnavailable, match="in time"):
            open_destination().deliver(Webhook(url=url), parcel)
    assert time.monotonic() - started < 3
