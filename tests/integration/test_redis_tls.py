"""rediss://, on Debian's Redis (the one from a wheel has no TLS): what works, and which certificates are refused."""

import os
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import redis
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from tenacity import stop_after_attempt

from embedfleet import Fleet, policies
from embedfleet import broker as module
from embedfleet.broker import Broker
from embedfleet.contract import Batch
from embedfleet.errors import BrokerUnavailable
from embedfleet.settings import load
from embedfleet_worker import app
from tests.integration.command import run, start
from tests.waiting import wait_until

pytestmark = pytest.mark.debian("redis-server", "redis-server")

BATCH = Batch(to="file:///data", job="j-1", batch=0, tokens=1)
CALLS: dict[str, Callable[[Broker], object]] = {
    "by a producer": lambda broker: broker.publish(BATCH, "q"),
    "by a worker": lambda broker: app.leases_of(broker, ["q"]).sweep(),
}


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two authorities, and of the first a certificate for localhost and one for another host."""
    folder = tmp_path_factory.mktemp("certificates")
    trusted = Authority(folder / "trusted.pem")
    Authority(folder / "unknown.pem")
    trusted.certify("localhost", folder / "localhost")
    trusted.certify("elsewhere.example", folder / "elsewhere")
    return folder


class Authority:
    """An authority of its own making; its certificate is the file."""

    def __init__(self, file: Path) -> None:
        self._key, self._name = ec.generate_private_key(ec.SECP256R1()), name(file.stem)
        usage = x509.KeyUsage(False, False, False, False, False, True, True, False, False)  # signs keys and lists
        signed = (
            builder(self._name, self._name, self._key)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(usage, critical=True)
            .sign(self._key, hashes.SHA256())
        )
        file.write_bytes(signed.public_bytes(serialization.Encoding.PEM))

    def certify(self, host: str, file: Path) -> None:
        """Write a host's certificate and key."""
        key = ec.generate_private_key(ec.SECP256R1())
        hosts = x509.SubjectAlternativeName([x509.DNSName(host)])
        signed = builder(name(host), self._name, key).add_extension(hosts, critical=False)
        encoding, no_password = serialization.Encoding.PEM, serialization.NoEncryption()
        file.with_suffix(".crt").write_bytes(signed.sign(self._key, hashes.SHA256()).public_bytes(encoding))
        pkcs8 = key.private_bytes(encoding, serialization.PrivateFormat.PKCS8, no_password)
        file.with_suffix(".key").write_bytes(pkcs8)


def name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def builder(subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
    begin, day = datetime.now(UTC), timedelta(days=1)
    named = x509.CertificateBuilder(issuer, subject, key.public_key(), x509.random_serial_number())
    return named.not_valid_before(begin - day).not_valid_after(begin + day)


@pytest.fixture(scope="module")
def localhost(certificates: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    yield from serve(certificates, "localhost", tmp_path_factory.mktemp("redis"))


@pytest.fixture(scope="module")
def elsewhere(certificates: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """At this host too, with the certificate of another."""
    yield from serve(certificates, "elsewhere", tmp_path_factory.mktemp("redis"))


def serve(certificates: Path, host: str, folder: Path) -> Iterator[str]:
    """A server that speaks nothing but TLS; its URL."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    files = {"cert-file": certificates / f"{host}.crt", "key-file": certificates / f"{host}.key"}
    tls = [word for option, file in files.items() for word in (f"--tls-{option}", str(file))]
    command = [shutil.which("redis-server", path=os.defpath) or "", "--bind", "127.0.0.1", "--port", "0", "--save", ""]
    command += ["--tls-port", str(port), "--tls-auth-clients", "no", *tls, "--dir", str(folder)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    client = redis.Redis(host="localhost", port=port, ssl=True, ssl_cert_reqs="none", ssl_check_hostname=False)
    try:
        wait_until(lambda: answers(client, server), "Redis to answer")
        yield f"rediss://localhost:{port}/0"
    finally:
        client.close()
        server.kill()
        server.wait()


def answers(client: redis.Redis, server: "subprocess.Popen[bytes]") -> bool:
    assert server.poll() is None, "redis-server ended: was it built without TLS?"
    try:
        return bool(client.ping())
    except redis.exceptions.ConnectionError:
        return False


@pytest.fixture
def connect(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], Broker]]:
    """Make brokers that try only once."""
    monkeypatch.setattr(policies.BROKER, "stop", stop_after_attempt(1))
    made: list[Broker] = []

    def broker(url: str) -> Broker:
        made.append(module.connect(load(broker_url=url)))
        return made[-1]

    yield broker
    for one in made:
        one.close()


@pytest.mark.parametrize("way", CALLS)
def test_a_certificate_of_a_trusted_authority_is_taken(
    connect: Callable[[str], Broker], localhost: str, certificates: Path, way: str
) -> None:
    CALLS[way](connect(f"{localhost}?ssl_ca_certs={certificates}/trusted.pem"))


@pytest.mark.parametrize("way", CALLS)
@pytest.mark.parametrize("authority", ["?ssl_ca_certs={}/unknown.pem", ""], ids=["another authority", "the system's"])
def test_a_certificate_of_an_unknown_authority_is_refused(
    connect: Callable[[str], Broker], localhost: str, certificates: Path, authority: str, way: str
) -> None:
    with pytest.raises(BrokerUnavailable, match="certificate verify failed"):
        CALLS[way](connect(localhost + authority.format(certificates)))


@pytest.mark.parametrize("way", CALLS)
def test_a_certificate_for_another_host_is_refused(
    connect: Callable[[str], Broker], elsewhere: str, certificates: Path, way: str
) -> None:
    with pytest.raises(BrokerUnavailable, match=r"Hostname mismatch"):
        CALLS[way](connect(f"{elsewhere}?ssl_ca_certs={certificates}/trusted.pem"))


def test_a_fleet_works_over_tls(localhost: str, certificates: Path, tmp_path: Path) -> None:
    """Leases, parts, acknowledgements and replies, with a worker of its own process."""
    url, store = f"{localhost}?ssl_ca_certs={certificates}/trusted.pem", tmp_path / "store"
    worker = start("worker", cwd=tmp_path, broker_url=url, store=store)
    with Fleet(broker_url=url, store=str(store), engine="synthetic") as fleet:
        assert fleet.submit(["a text", "another"]).wait(timeout_s=60).totals.texts == 2
        assert fleet.embed(["a text"], timeout_s=60).shape == (1, 384)
        broker: Any = fleet.broker
        wait_until(lambda: not broker.redis.exists(f"{broker.lane('bulk')}-leases"), "every lease to be acknowledged")
    worker.terminate()
    _, said = worker.communicate(timeout=30)
    assert worker.returncode == 0, said.decode()


def test_a_worker_does_not_start_at_a_server_it_can_not_verify(
    localhost: str, certificates: Path, tmp_path: Path
) -> None:
    url = f"{localhost}?ssl_ca_certs={certificates}/unknown.pem"
    done = run("worker", cwd=tmp_path, broker_url=url, store=tmp_path)
    assert done.returncode == 75
    assert "certificate verify failed" in done.stderr
