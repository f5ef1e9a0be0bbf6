"""The connection to a server: certificates are verified, every error of the HTTP client is mapped."""

import ssl
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import httpcore2
import numpy as np
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from embedfleet import policies
from embedfleet.errors import EngineUnreachable
from embedfleet.models import profile_of
from embedfleet.settings import load
from embedfleet_worker.engine.base import Priority
from embedfleet_worker.engine.openai import OpenaiEngine
from tests.embedding_server import embedding_server, slow, unit_vector


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(policies, "ENGINE", policies.ENGINE.copy(wait=lambda _: 0.01))


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    """One that signed itself, with its key, for 127.0.0.1."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "a server")])
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    builder = builder.serial_number(x509.random_serial_number())
    builder = builder.not_valid_before(datetime.now(UTC) - timedelta(days=1))
    builder = builder.not_valid_after(datetime.now(UTC) + timedelta(days=1))
    addresses = x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))])
    signed = builder.add_extension(addresses, critical=False).sign(key, hashes.SHA256())
    file = tmp_path / "server.pem"
    plain = serialization.NoEncryption()
    secret = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain)
    file.write_bytes(secret + signed.public_bytes(serialization.Encoding.PEM))
    return file


def engine_at(url: str, model: Path, **settings: Any) -> OpenaiEngine:
    given = {"engine": "openai", "openai_url": url, "openai_model": "m", "model": str(model), **settings}
    return OpenaiEngine(profile_of(str(model)), load(**given))


def test_certificates_are_verified(certificate: Path, tiny_qwen3: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    with embedding_server(128, context=context) as server:
        with pytest.raises(EngineUnreachable, match="CERTIFICATE_VERIFY_FAILED"):
            engine_at(server.url, tiny_qwen3)
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        engine = engine_at(server.url, tiny_qwen3)
        server.fault = slow(0.6)  # longer than between two looks at whether it is still wanted
        embedded = engine.embed(engine.tokenise(["a text"], truncate=True), Priority.BULK).result(30)
        np.testing.assert_allclose(embedded.vectors[0], unit_vector("a text", 128), atol=1e-6)
        engine.close()


def _exceptions(module: Any) -> list[type[Exception]]:
    found = [getattr(module, name) for name in module.__all__]
    return [kind for kind in found if isinstance(kind, type) and issubclass(kind, Exception)]


@pytest.mark.parametrize("kind", [*_exceptions(httpcore2), OSError, TimeoutError, ssl.SSLError])
def test_every_error_of_the_client_is_mapped(
    monkeypatch: pytest.MonkeyPatch, tiny_qwen3: Path, kind: type[Exception]
) -> None:
    def fail(*_args: object, **_kwargs: object) -> None:
        raise kind("broken")

    monkeypatch.setattr(httpcore2.ConnectionPool, "handle_request", fail)
    with pytest.raises(EngineUnreachable, match=r"^server http://127\.0\.0\.1:9/v1:"):
        engine_at("http://127.0.0.1:9/v1", tiny_qwen3)
