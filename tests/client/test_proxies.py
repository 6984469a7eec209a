"""Proxies from the environment: their selection by URL, and requests through them over real sockets.

https://everything.curl.dev/usingcurl/proxies/env.html, RFC 9110 §9.3.6 (CONNECT), RFC 9112 §3.2.2 (absolute form).
"""

import asyncio
import ssl
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from cases import for_each
from client.certificates import self_signed
from client.misbehaving_servers import (
    DONE,
    Behave,
    ReceivedRequest,
    assert_readable,
    misbehaving,
    read_request,
    with_discovery,
)
from millstream import Client
from millstream._http.client.request import encode_headers, encode_request
from millstream._http.client.url import parse_url, proxy_for
from millstream.client import Options
from millstream.client._errors import ClientError, ConnectFailed, TargetError
from processes import free_port
from raw_peer import TEXTS, check_head, split_requests

HERE = "http://proxy.example:3128"


@for_each(
    ("url", "variables", "found"),
    [
        ("https://a.example/", {"HTTPS_PROXY": HERE}, HERE),
        ("https://a.example/", {"https_proxy": HERE, "HTTPS_PROXY": "http://other"}, HERE),
        ("https://a.example/", {"HTTP_PROXY": HERE}, None),
        ("http://a.example/", {"HTTP_PROXY": HERE}, HERE),
        ("http://a.example/", {"HTTP_PROXY": HERE, "REQUEST_METHOD": "GET"}, None),
        ("wss://a.example/", {"HTTPS_PROXY": HERE}, HERE),
        ("https://a.example/", {"ALL_PROXY": "proxy.example:3128"}, HERE),
        ("https://a.example/", {"HTTPS_PROXY": ""}, None),
        ("https://a.example/", {"HTTPS_PROXY": HERE, "NO_PROXY": "b.example, .example"}, None),
        ("https://a.example/", {"HTTPS_PROXY": HERE, "NO_PROXY": "*"}, None),
        ("https://a.example/", {"HTTPS_PROXY": HERE, "no_proxy": "a.example:443"}, None),
        ("https://a.example/", {"HTTPS_PROXY": HERE, "no_proxy": "a.example:80,xample"}, HERE),
        ("https://[2001:db8::1]/", {"HTTPS_PROXY": HERE, "no_proxy": "2001:db8::1"}, None),
        ("http://10.1.2.3:8000/", {"HTTP_PROXY": HERE, "NO_PROXY": "localhost,10.0.0.0/8"}, None),
        ("http://11.1.2.3/", {"HTTP_PROXY": HERE, "NO_PROXY": "10.0.0.0/8, a.example/8"}, HERE),
        ("http://a.example/", {"HTTP_PROXY": HERE, "NO_PROXY": "10.0.0.0/8"}, HERE),
        ("https://[fd00::1]/", {"HTTPS_PROXY": HERE, "no_proxy": "fd00::/8"}, None),
        ("http://127.0.0.1:8000/", {"HTTP_PROXY": HERE}, None),
        ("http://localhost/", {"ALL_PROXY": HERE}, None),
        ("http://[::1]/", {"ALL_PROXY": HERE}, None),
    ],
)
def test_environment_selects_the_proxy_by_url(url: str, variables: dict[str, str], found: str | None) -> None:
    proxy = proxy_for(parse_url(url), variables)
    assert (None if proxy is None else str(proxy)) == found


@for_each(
    "value",
    [
        "socks5://proxy:1080",
        "https://proxy:3128",
        "http://",
        "http://proxy:x",
        "http://a..b:3128",
        "http://[::1",
        "http://a\u00a0b:3128",
        "http://\udc8a:p@proxy:3128",
    ],
)
def test_unsupported_proxies_are_rejected(value: str) -> None:
    with pytest.raises(TargetError, match="HTTPS_PROXY isn't the URL of a supported proxy"):
        proxy_for(parse_url("https://a.example/"), {"HTTPS_PROXY": value})


@dataclass
class World:
    """A proxy for one host, and the requests it received."""

    port: int = 0
    asked: list[str] = field(default_factory=list)
    credentials: list[str] = field(default_factory=list)
    answer: str = "200 Connection established"


@asynccontextmanager
async def proxying(target: int) -> AsyncGenerator[World, None]:
    """Run a proxy on this machine that resolves `mcp.test` to the port `target`."""
    world = World()
    tasks: set[asyncio.Task[None]] = set()

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError, asyncio.CancelledError):
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        head = await reader.readuntil(b"\r\n\r\n")
        lines = head.decode("latin-1").split("\r\n")
        method, where, _ = lines[0].split(" ")
        world.asked.append(f"{method} {where}")
        world.credentials += [line for line in lines if line.lower().startswith("proxy-authorization:")]
        if not world.answer.startswith("200"):
            if world.answer:
                length = "" if "Content-Length" in world.answer else "\r\nContent-Length: 0"
                writer.write(f"HTTP/1.1 {world.answer}{length}\r\n\r\n".encode())
            writer.close()
            return
        inner, outer = await asyncio.open_connection("127.0.0.1", target)
        if method == "CONNECT":
            writer.write(f"HTTP/1.1 {world.answer}\r\n\r\n".encode())
        else:
            outer.write(head.replace(b"http://mcp.test", b"", 1))
        await asyncio.gather(pump(reader, outer), pump(inner, writer))

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    world.port = server.sockets[0].getsockname()[1]
    try:
        yield world
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def done(asked: ReceivedRequest) -> None:
    await asked.result(DONE)


async def test_http_proxy_requests_use_absolute_urls(monkeypatch: pytest.MonkeyPatch) -> None:
    async with (
        misbehaving(with_discovery(done)) as server,
        proxying(int(server.url.split(":")[2].split("/")[0])) as proxy,
    ):
        monkeypatch.setenv("HTTP_PROXY", f"http://ada:p%40ss@127.0.0.1:{proxy.port}")
        async with Client("http://mcp.test/mcp") as client:
            assert (await client.call("x")).text == "done"
        assert proxy.asked[0] == "POST http://mcp.test/mcp"
        assert proxy.credentials[0] == "Proxy-Authorization: Basic YWRhOnBAc3M="
        assert server.requests[0].headers["host"] == "mcp.test"


@asynccontextmanager
async def secure(folder: Path, behave: Behave | None = None) -> AsyncGenerator[tuple[int, ssl.SSLContext], None]:
    """An https server for `mcp.test`, and a context that trusts it."""
    behave = behave or with_discovery(done)
    certificate, key = self_signed(folder)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                await behave(await read_request(reader, writer))
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
    try:
        yield server.sockets[0].getsockname()[1], ssl.create_default_context(cafile=certificate)
    finally:
        server.close()


async def test_https_uses_a_proxy_tunnel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with secure(tmp_path) as (port, trusting), proxying(port) as proxy:
        monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{proxy.port}")
        async with Client("https://mcp.test/mcp", options=Options(tls=trusting)) as client:
            assert (await client.call("x")).text == "done"
        assert set(proxy.asked) == {"CONNECT mcp.test:443"}
        with pytest.raises(ClientError) as caught:
            async with Client("https://mcp.test/mcp"):
                pass
        assert_readable(caught.value, "isn't trusted")


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ("407 Proxy Authentication Required", "requires credentials (407)"),
        ("403 Forbidden", "refused to connect to https://mcp.test (403)"),
        ("502 Bad Gateway\r\nContent-Length: 99999999", "refused to connect to https://mcp.test (502)"),
        ("", "didn't respond to the request to connect"),
    ],
)
async def test_proxy_rejections_are_explained(answer: str, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async with proxying(1) as proxy:
        proxy.answer = answer
        monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{proxy.port}")
        with pytest.raises(ConnectFailed) as caught:
            async with Client("https://mcp.test/mcp"):
                pass
        assert_readable(caught.value, "The proxy http://127.0.0.1:", words)


async def test_proxy_authentication_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    async with proxying(1) as proxy:
        proxy.answer = "407 Proxy Authentication Required"
        monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{proxy.port}")
        with pytest.raises(ConnectFailed, match=r"requires credentials \(407\)"):
            async with Client("http://mcp.test/mcp"):
                pass
        monkeypatch.setenv("HTTP_PROXY", f"http://ada:secret@127.0.0.1:{proxy.port}")
        with pytest.raises(ConnectFailed, match=r"rejected the name or password in the variable \(407\)"):
            async with Client("http://mcp.test/mcp"):
                pass


@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_unreachable_proxies_are_explained(scheme: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALL_PROXY", f"http://127.0.0.1:{free_port()}")
    with pytest.raises(ConnectFailed, match=r"Can't connect to the proxy .* from the environment"):
        async with Client(f"{scheme}://mcp.test/mcp"):
            pass


@for_each("text", TEXTS.values(), ids=TEXTS)
def test_credentials_of_a_proxy_add_nothing_to_requests(text: str) -> None:
    try:
        proxy = proxy_for(parse_url("http://a.example/"), {"http_proxy": f"http://u{text}:{text}@127.0.0.1:1"})
    except TargetError:
        return
    assert proxy is not None
    usual = encode_request("GET", "/", encode_headers({"Host": "a.example"}))
    for sent in (
        proxy.connect(parse_url("https://a.example/")),
        proxy.forward(parse_url("http://a.example/"), usual),
    ):
        ((head, _),), rest = split_requests(sent)
        check_head(head, {b"host", b"proxy-authorization"}, {b"GET", b"CONNECT"})
        assert rest == b""
