"""Where webhooks can't go: addresses, spellings of them, and names that lead elsewhere the second time."""

import socket
import time
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv6Address
from threading import Event

import httpcore2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedfleet.errors import ConfigurationError, DestinationRefused, DestinationUnavailable
from embedfleet_worker.destinations.address import Backend, Guard, Origin, is_public
from tests.receiver import Receiver, receiver
from tests.unit.network import Names
from tests.waiting import wait_until

PUBLIC = ["93.184.216.34", "8.8.8.8", "2606:4700::1111", "2a00:1450:4001:80b::200e"]
NOT_PUBLIC = [
    "0.0.0.0", "0.1.2.3", "10.0.0.1", "10.255.255.255", "100.64.0.1", "100.100.100.200", "100.127.255.255", "127.0.0.1",
    "127.8.8.8", "168.63.129.16", "169.254.0.1", "169.254.169.254", "169.254.170.2", "172.16.0.1", "172.31.255.255",
    "192.0.0.1", "192.0.0.192", "192.0.2.1", "192.88.99.1", "192.168.0.1", "192.168.255.255", "198.18.0.1",
    "198.19.255.255", "198.51.100.1", "203.0.113.1", "224.0.0.1", "239.255.255.250", "240.0.0.1", "255.255.255.255",
    "::", "::1", "::7f00:1", "::ffff:127.0.0.1", "::ffff:169.254.169.254", "::ffff:8.8.8.8", "::ffff:0:127.0.0.1",
    "64:ff9b::7f00:1", "64:ff9b::808:808", "64:ff9b:1::a00:1", "100::1", "2001::1",
    "2001:0:4136:e378:8000:63bf:80ff:fffe",
    "2001:2::1", "2001:10::1", "2001:20::1", "2001:db8::1", "2002:7f00:1::", "2002:a9fe:a9fe::1", "3fff::1", "5f00::1",
    "4000::1", "fc00::1", "fd00:ec2::254", "fe80::1", "feb0::1", "fec0::1", "ff02::1", "ff0e::1",
    "2606:4700::5efe:127.0.0.1", "2606:4700::200:5efe:10.0.0.1",
]  # fmt: skip
SPELLINGS = [
    "https://2130706433/", "https://0x7f000001/", "https://017700000001/", "https://0x7f.1/", "https://0177.0.0.1/",
    "https://0x7F.0.0.0x1/", "https://127.1/", "https://127.0.1/", "https://127.0.0.01/", "https://127.0.0.1.1/", "https://256.0.0.1/",
    "https://127.0.0.1./", "https://0/", "https://0x/", "https://1.2.3.4.0x/", "https://8.8/", "https://134744072/",
    "https://[::ffff:127.0.0.1]/", "https://[::]/", "https://[::1]/", "https://[0:0:0:0:0:0:0:1]/",
    "https://[fe80::1%25eth0]/", "https://[fe80::1%eth0]/", "https://[::1", "https://::1/", "https://[127.0.0.1]/", "https://[v1.a]/",
    "https://localhost/", "https://localhost./", "https://LOCALHOST/", "https://localhost../", "https://.localhost/",
    "https://１２７.０.０.１/", "https://127。0。0。1/", "https://ⓛocalhost/", "https://bücher.example/", "https://\u212aube.example/",
    "http\u017f://app.example/", "https://%31%32%37.0.0.1/", "https://app.example%00.evil/", "https://localhost%2f@app.example/",
    "https://user@127.0.0.1/", "https://app.example@127.0.0.1/", "https://a:b@app.example/", "https://app.example\\@127.0.0.1/",
    "https://app.example\\.evil/", "https:\\\\127.0.0.1/", "https://app.example#@127.0.0.1/", "https:/127.0.0.1/",
    "https:127.0.0.1",
    "//127.0.0.1/", "///127.0.0.1/", "https://", "https:///", "", "https://app.example:0/", "https://app.example:65536/",
    "https://app.example:-1/", "https://app.example:443x/", "https://app.example:/", "https://app.example:４４３/", "https://app.example:443:80/",
    "https://app .example/", "https://127.0.0.1\t/", "https://app.example/\n", "https://app.example\r\nHost: x/", " https://app.example/",
    "ht\ntps://app.example/", "https://app.example/a b", "https://app.example/\0", "https://app.example/é", "https://-app.example/",
    "https://app-.example/", "https://app..example/", "https://" + "a" * 64 + ".example/",
    "https://" + "a." * 127 + "example/", "https://*/",
    "https://app.example,127.0.0.1/", "unix:///run/docker.sock", "http+unix://%2Frun%2Fdocker.sock/", "file:///etc/passwd",
    "gopher://127.0.0.1/",
    "ftp://app.example/", "HTTP://app.example/", "http://app.example/", "http://127.0.0.1/", "javascript:alert(1)",
]  # fmt: skip


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> Names:
    return Names(monkeypatch)


@pytest.fixture
def server() -> Iterator[Receiver]:
    with receiver() as running:
        yield running


def connect(guard: Guard, url: str, timeout_s: float = 2) -> None:
    """All that happens before the first byte is sent."""
    origin, _ = guard.admit(url)
    Backend(guard).connect_tcp(origin.host, origin.port, time.monotonic() + timeout_s).close()


def url_of(address: str) -> str:
    return f"https://[{address}]/" if ":" in address else f"https://{address}/"


# Addresses


@pytest.mark.parametrize("address", NOT_PUBLIC)
def test_an_address_that_is_not_public_is_refused(address: str) -> None:
    with pytest.raises(DestinationRefused, match="is not public"):
        connect(Guard((), ()), url_of(address))


@pytest.mark.parametrize("address", NOT_PUBLIC)
def test_a_name_is_refused_when_one_of_its_addresses_is_not_public(names: Names, address: str) -> None:
    for answer in ([address], [*PUBLIC, address], [address, *PUBLIC]):
        names.answers["app.example"] = [answer]
        with pytest.raises(DestinationRefused, match=r"app\.example: its address .* is not public"):
            connect(Guard((), ()), "https://app.example/")


@pytest.mark.parametrize("address", PUBLIC)
def test_a_public_address_is_not_refused(names: Names, address: str) -> None:
    names.answers["app.example"] = [[address]]
    for host in ("app.example", address):
        assert Guard((), ()).addresses(host, 443, 5) == [address]


@given(st.ip_addresses())
def test_no_address_is_public_that_python_calls_private(address: IPv4Address | IPv6Address) -> None:
    assert address.is_global or not is_public(address)


def test_listed_networks_are_allowed_and_no_others(names: Names) -> None:
    guard = Guard((), ("10.1.0.0/16", "fd00:1::/32", "192.168.7.7"))
    names.answers["inside.example"] = [["10.1.2.3", "fd00:1::5", "192.168.7.7", *PUBLIC]]
    assert guard.addresses("inside.example", 443, 5)[:3] == ["10.1.2.3", "fd00:1::5", "192.168.7.7"]
    for address in ("10.2.0.1", "fd00:2::1", "192.168.7.8", "::ffff:10.1.2.3", "127.0.0.1"):
        names.answers["inside.example"] = [["10.1.2.3", address]]
        with pytest.raises(DestinationRefused, match="EMBEDFLEET_WEBHOOK_NETWORKS"):
            guard.addresses("inside.example", 443, 5)


# Spellings


@pytest.mark.parametrize("url", SPELLINGS, ids=ascii)
def test_a_spelling_is_refused_before_anything_is_connected(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.setattr(socket, "create_connection", lambda *_args, **_kwargs: pytest.fail("it was connected"))
    with pytest.raises(DestinationRefused, match=r"^webhook ") as refused:
        connect(Guard((), ()), url)
    assert str(refused.value).isprintable()


@pytest.mark.parametrize("url", ["https://a b.example/?token=s3cret", "https://me:s3cret@x.example/", "s3cret"])
def test_a_refusal_tells_no_secret(url: str) -> None:
    with pytest.raises(DestinationRefused) as refused:
        Guard((), ()).admit(url)
    assert "s3cret" not in str(refused.value)


def test_a_url_has_one_reading() -> None:
    guard = Guard((), ())
    assert guard.admit("HTTPS://App.Example./a/b?c=[d]&e=%20") == (
        Origin("https", "app.example", 443), "/a/b?c=[d]&e=%20",
    )  # fmt: skip
    assert guard.admit("https://my_app:8443?a") == (Origin("https", "my_app", 8443), "/?a")
    assert guard.admit("https://[2606:4700:0::1]:444")[0].authority == "[2606:4700::1]:444"
    assert guard.admit("https://xn--bcher-kva.example/")[0].authority == "xn--bcher-kva.example"


# What the operator lists


def test_only_listed_origins_where_any_are_listed() -> None:
    guard = Guard(("https://App.example.", "http://localhost:8080/", "https://[2606:4700::1]:443"), ())
    for url in ("https://APP.example:443/a", "http://LOCALHOST.:8080/b?c", "https://[2606:4700:0:0::1]/"):
        guard.admit(url)
    for url in ("https://app.example:444/", "http://app.example/", "https://localhost:8080/", "https://b.app.example/"):
        with pytest.raises(DestinationRefused, match="EMBEDFLEET_WEBHOOK_ORIGINS"):
            guard.admit(url)


@pytest.mark.parametrize(
    "entry",
    [
        "app.example",
        "https://app.example/a",
        "https://app.example?a",
        "https://bücher.example",
        "*",
        "ftp://a",
        "https://",
    ],
)
def test_an_origin_that_is_none_is_named(entry: str) -> None:
    with pytest.raises(ConfigurationError, match="EMBEDFLEET_WEBHOOK_ORIGINS: ") as refused:
        Guard(("https://app.example", entry), ())
    assert repr(entry) in str(refused.value)


@pytest.mark.parametrize("entry", ["10.1.2.3/16", "10.0.0.0/33", "app.example", "10.1", "10.0.0.0-10.0.0.9"])
def test_a_network_that_is_none_is_named(entry: str) -> None:
    with pytest.raises(ConfigurationError, match="EMBEDFLEET_WEBHOOK_NETWORKS: ") as refused:
        Guard((), ("10.0.0.0/8", entry))
    assert entry in str(refused.value)


# Names


def test_a_name_that_leads_elsewhere_after_the_check_is_not_followed(names: Names, server: Receiver) -> None:
    """127.0.0.2 is allowed and nobody listens there; 127.0.0.1 is not, and the server waits there."""
    guard = Guard((), ("127.0.0.2",))
    names.answers["app.example"] = [["127.0.0.2"], ["127.0.0.1"]]
    with pytest.raises(httpcore2.ConnectError):
        connect(guard, f"https://app.example:{server.port}/")
    assert names.asked.count("app.example") == 1
    with pytest.raises(DestinationRefused, match="not public"):
        connect(guard, f"https://app.example:{server.port}/")
    connect(Guard((), ("127.0.0.1",)), f"https://app.example:{server.port}/")  # the server does take connections
    wait_until(lambda: server.connections == 1, "the connection")


def test_the_next_address_is_tried_where_one_does_not_answer(names: Names, server: Receiver) -> None:
    names.answers["app.example"] = [["127.0.0.2", "127.0.0.1"]]
    connect(Guard((), ("127.0.0.0/8",)), f"https://app.example:{server.port}/")
    wait_until(lambda: server.connections == 1, "the connection")


def test_a_name_that_does_not_resolve_may_later() -> None:
    with pytest.raises(DestinationUnavailable, match=r"webhook nowhere\.invalid: the name does not resolve"):
        connect(Guard((), ()), "https://nowhere.invalid/", timeout_s=30)


def test_a_resolver_that_hangs_holds_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    hanging = Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_args, **_kwargs: hanging.wait())
    started = time.monotonic()
    with pytest.raises(DestinationUnavailable, match=r"app\.example: the name was not resolved in time"):
        connect(Guard((), ()), "https://app.example/", timeout_s=0.3)
    assert time.monotonic() - started < 2
    hanging.set()
