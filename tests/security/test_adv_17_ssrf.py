"""Server-side request forgery (CVE-2026-116686, CVE-2026-77822, CVE-2026-79747).

One fetcher makes all outbound requests: https only, addresses checked after DNS resolution and connected to as checked,
no redirects, limits on size and time. Redirects that leak credentials are CVE-2026-116685 and CVE-2026-111769.
"""

import asyncio
import socket
import threading
from threading import Event
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cases import for_each
from fleet import until
from issuer_world import run_issuer
from millstream import Server, Settings
from millstream._http.client import pool
from millstream._http.client.pool import OutboundError, check_url, fetch, is_public
from millstream.extensions.http_post import parse_url, post
from patience import WAIT
from property_settings import examples

INNER = [
    "127.0.0.1", "127.8.8.8", "0.0.0.0", "10.0.0.1", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1",  # noqa: S104
    "192.0.0.1", "198.18.0.1", "224.0.0.1", "240.0.0.1", "255.255.255.255", "::", "::1", "fc00::1", "fd12::1",
    "fe80::1", "fe80::1%eth0", "ff02::1", "::ffff:127.0.0.1", "::ffff:10.0.0.1", "::ffff:169.254.169.254",
    "64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe", "2002:7f00:1::", "2002:a00:1::", "2001:db8::1", "fec0::1",
    "::127.0.0.1", "::a9fe:a9fe", "64:ff9b:1::7f00:1", "64:ff9b:1:fffe::a9fe:a9fe", "::ffff:0:127.0.0.1", "5f00::1",
    "3fff::1", "168.63.129.16", "::ffff:168.63.129.16", "192.88.99.1", "4000::1", "100::1", "192.0.0.192", "192.0.0.9",
    "::ffff:192.0.0.192", "64:ff9b::c000:c0", "2002:c000:c0::1", "2002:101:101::1", "2001:0:101:101::fefe:fefe",
    "2001:0:7f00:1::fefe:fefe", "2001:20::1", "2001:1ff:ffff::1",
]  # fmt: skip


@for_each("address", INNER)
def test_private_addresses_are_recognized_in_every_spelling(address: str) -> None:
    assert not is_public(address)


@for_each("address", ["1.1.1.1", "93.184.216.34", "2606:4700::1111", "::ffff:1.1.1.1", "64:ff9b::101:101"])
def test_internet_addresses_are_public(address: str) -> None:
    assert is_public(address)


@given(st.ip_addresses())
@settings(max_examples=examples(200))
def test_public_addresses_are_public_on_every_python_version(address: Any) -> None:
    inner = getattr(address, "ipv4_mapped", None) or address
    if is_public(str(address)) and int(address) >> 32 != 0x64FF9B << 64:
        assert inner.is_global
        assert not inner.is_multicast


@for_each("url", [
    "http://example.com/", "http://169.254.169.254/latest", "ftp://example.com/", "file:///etc/passwd", "gopher://a/",
    "https://user@example.com/", "https://user:secret@example.com/", "https://:secret@example.com/", "https:///x",
    "https://", "", "example.com", "//example.com", "https://exa mple.com/", "https://example.com/\r\nx: y",
    "https://example.com:0/", "https://example.com:99999/", "https://[::1/", "https://example.com/\x00", "https://é.example/",
    "javascript:alert(1)", "data:text/plain,x", "http://localhost.evil.example/", "http://127.0.0.1.evil.example/",
    "https://example.com/" + "a" * 3000,
])  # fmt: skip
def test_forbidden_urls_are_rejected_before_a_dns_lookup(url: str) -> None:
    with pytest.raises(OutboundError):
        check_url(url)


def names(monkeypatch: pytest.MonkeyPatch, *answers: list[str]) -> list[str]:
    """Make a name resolve to different addresses in turn; return the names that were looked up."""
    asked: list[str] = []

    def resolve(host: str, port: int, *_: Any, **__: Any) -> list[Any]:
        asked.append(host)
        found = answers[min(len(asked), len(answers)) - 1]
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in found]

    monkeypatch.setattr(pool.socket, "getaddrinfo", resolve)
    return asked


class _Connected(Exception):
    """Raised with the address instead of connecting."""


def connects(monkeypatch: pytest.MonkeyPatch) -> None:
    """Raise `_Connected` instead of connecting."""

    async def connect(make: object, host: str, port: int, **options: Any) -> Any:
        raise _Connected(host, port, options.get("server_hostname"))

    monkeypatch.setattr(asyncio.get_running_loop(), "create_connection", connect)


@pytest.mark.parametrize("addresses", [["10.0.0.1"], ["1.1.1.1", "127.0.0.1"], ["169.254.169.254"], ["1.1.1.1", "::1"]])
async def test_names_with_private_addresses_are_rejected(addresses: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    names(monkeypatch, addresses)
    connects(monkeypatch)
    with pytest.raises(OutboundError, match="aren't allowed"):
        await fetch("https://rebind.example/keys")


async def deliver(owner: str) -> Any:
    """POST to a webhook."""
    return await post(parse_url(f"https://{owner}.slow.example/hook"), {}, b"", owner=owner)


async def test_slow_dns_lookups_do_not_exhaust_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    answer, asked = Event(), []

    def resolve(host: str, port: int, *_: Any, **__: Any) -> list[Any]:
        asked.append(host)
        answer.wait(WAIT)
        raise socket.gaierror("nobody knows")

    monkeypatch.setattr(pool.socket, "getaddrinfo", resolve)
    lookups: list[asyncio.Task[Any]] = [
        asyncio.create_task(fetch(f"https://{number}.slow.example/client")) for number in range(64)
    ]
    try:
        async with asyncio.timeout(WAIT):
            await asyncio.sleep(0)  # lets each lookup start
            assert await asyncio.to_thread(lambda: "checked") == "checked"
            while sum(each.done() for each in lookups) < 56:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        assert len(asked) == 8
        lookups.append(asyncio.create_task(deliver("ada")))
        await until(lambda: len(asked) == 9)
    finally:
        answer.set()
        said = [str(each) for each in await asyncio.gather(*lookups, return_exceptions=True)]
        for each in threading.enumerate():
            if each.name == "lookup":
                each.join(WAIT)
    assert sum("Too many names" in each for each in said) == 56
    with pytest.raises(OutboundError, match="There is no server at"):
        await fetch("https://another.example/client")


async def test_connections_use_the_address_that_was_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
    asked = names(monkeypatch, ["1.1.1.1"], ["127.0.0.1"])
    connects(monkeypatch)
    with pytest.raises(_Connected) as to:
        await fetch("https://rebind.example:8443/keys")
    assert to.value.args == ("1.1.1.1", 8443, "rebind.example")
    assert asked == ["rebind.example"]


@for_each("url", ["http://127.0.0.1:{}/", "http://localhost:{}/", "https://localhost:{}/", "http://[::1]:{}/"])
async def test_loopback_requests_need_an_operator_option(url: str) -> None:
    async with run_issuer() as issuer:
        with pytest.raises(OutboundError):
            await fetch(url.format(issuer.port))
        assert issuer.request_counts.total() == 0


def anywhere(address: str) -> bool:
    return True


@for_each("status", [301, 302, 303, 307, 308])
@for_each("where", ["same", "other"])
async def test_outbound_fetches_follow_no_redirect(status: int, where: str) -> None:
    async with run_issuer() as issuer, run_issuer() as other:
        target = f"{issuer.url if where == 'same' else other.url}/keys"
        issuer.answers["/from"] = b"HTTP/1.1 %d x\r\nlocation: %b\r\ncontent-length: 0\r\n\r\n" % (
            status,
            target.encode(),
        )
        with pytest.raises(OutboundError, match=str(status)):
            await fetch(f"{issuer.url}/from", headers={"authorization": "Basic secret"}, is_allowed=anywhere)
        assert issuer.request_counts == {"/from": 1}
        assert other.request_counts.total() == 0


OK = b"HTTP/1.1 200 OK\r\n"
BAD: dict[str, bytes] = {
    "too large": OK + b"content-length: 70000\r\n\r\n" + b"x" * 70_000,
    "too large in chunks": OK
    + b"transfer-encoding: chunked\r\n\r\n"
    + b"4000\r\n"
    + b"x" * 0x4000
    + b"\r\n" * 1
    + (b"4000\r\n" + b"x" * 0x4000 + b"\r\n") * 5,
    "too large without a length": OK + b"\r\n" + b"x" * 70_000,
    "a head without an end": OK + b"x-a: b\r\n" * 20_000,
    "not HTTP": b"SSH-2.0-OpenSSH\r\n",
    "nothing": b"",
    "half a head": OK + b"content-le",
    "half a body": OK + b"content-length: 10\r\n\r\nabc",
    "half a chunk": OK + b"transfer-encoding: chunked\r\n\r\n5\r\nab",
    "compressed": OK + b"content-encoding: gzip\r\ncontent-length: 3\r\n\r\nabc",
    "an error": b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n",
    "a stream without an end": OK + b"content-type: text/event-stream\r\n\r\ndata: {}\n\n",
    "another protocol": b"HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n",
    "informational answers without an end": b"HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n" * 2000,
    "nothing new": b"HTTP/1.1 204 No Content\r\n\r\n",
}


@for_each("answer", BAD.values(), ids=BAD)
async def test_oversized_and_truncated_responses_are_rejected(answer: bytes) -> None:
    async with run_issuer() as issuer:
        issuer.answers["/x"] = answer
        with pytest.raises(OutboundError):
            await fetch(f"{issuer.url}/x", is_allowed=anywhere)


async def test_unresponsive_peers_time_out() -> None:
    async with run_issuer() as issuer:
        issuer.gate = asyncio.Event()
        with pytest.raises(OutboundError, match="seconds"):
            await fetch(f"{issuer.url}/keys", is_allowed=anywhere, seconds=0.05)
        issuer.gate.set()


@for_each("answer", [
    OK + b"content-length: 2\r\n\r\n{}",
    OK + b"transfer-encoding: chunked\r\n\r\n1\r\n{\r\n1\r\n}\r\n0\r\n\r\n",
    OK + b"\r\n{}",
])  # fmt: skip
async def test_responses_are_read_in_every_framing(answer: bytes) -> None:
    """RFC 9112 §6."""
    async with run_issuer() as issuer:
        issuer.answers["/x?y=z"] = answer
        assert (await fetch(f"{issuer.url}/x?y=z#part", is_allowed=anywhere)).body == b"{}"
        assert b"\r\nhost: 127.0.0.1:%d\r\n" % issuer.port in issuer.requests[0]


@for_each("form", ["http://{0}/x", "//{0}/x#/a", "file:///etc/passwd", "http://user@{0}/", "HTTP://{0}/#"])
async def test_remote_schema_references_are_rejected_without_fetching(form: str) -> None:
    """CVE-2026-116686."""
    asked: list[bytes] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append(await reader.read(1))
        writer.close()

    listener = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with listener:
        place = form.format(f"127.0.0.1:{listener.sockets[0].getsockname()[1]}")
        schema = {"type": "object", "properties": {"a": {"$ref": place}}}
        server = Server("s", settings=Settings())
        for options in ({"input_schema": schema}, {"output_schema": schema}):
            with pytest.raises(ValueError, match="never fetched"):
                server.tool(name="t", **options)(lambda arguments: arguments)
    assert asked == []


async def test_headers_cannot_be_injected() -> None:
    async with run_issuer() as issuer:
        with pytest.raises(OutboundError):
            await fetch(f"{issuer.url}/keys", headers={"authorization": "a\r\nx: y"}, is_allowed=anywhere)
        assert issuer.request_counts.total() == 0
