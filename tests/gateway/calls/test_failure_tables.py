"""The tables of failures in the reference, compared with what callers get."""

import asyncio
import re
import socket
import ssl
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from client.certificates import self_signed
from client.misbehaving_servers import GREETING, OFFER, ReceivedRequest, misbehaving, refuse
from fleet import until
from http_peer import serve
from millstream import Server
from millstream.client import Client, ServerError
from millstream.gateway import bearer
from patience import WAIT, advance_clock
from processes import ROOT, free_port

pytestmark = pytest.mark.server

SECTION = "\n## When an upstream fails\n"
LEAD = "The server 'shop' behind this gateway "
NOT_SENT = ", so the call wasn't sent"
OLD = "2025-11-25"
LISTED = {
    "tools/list": {"resultType": "complete", "tools": [{"name": "order", "inputSchema": {"type": "object"}}]},
    "resources/list": {"resultType": "complete", "resources": [{"uri": "stock://all", "name": "all"}]},
}


def read_tables() -> dict[str, str]:
    """Return what happens -> the message, from each row of the section's tables that has a message."""
    page = (ROOT / "docs/reference/gateway-operation.md").read_text("utf-8")
    section = page.partition(SECTION)[2].partition("\n## ")[0]
    return dict(re.findall(r"^\| ([^|`]+) \| `([^`|]+)` \|", section, re.MULTILINE))


async def call(client: Client) -> str:
    """Call the tool and return its error."""
    result = await client.call("shop_order", raise_on_error=False)
    assert result.is_error
    return result.text


@asynccontextmanager
async def run_gateway(target: Any, **options: Any) -> AsyncIterator[Client]:
    mcp = Server("front")
    mcp.upstream("shop", target, **{"start_timeout": WAIT, "timeout": WAIT, "connect_timeout": WAIT, **options})
    async with Client(mcp, timeout=WAIT) as client:
        yield client


async def fail_to_start(target: Any) -> str:
    """Return the reason that a caller gets for a tool that's missing since the start."""
    async with run_gateway(target) as client:
        with pytest.raises(ServerError, match="Unknown tool") as caught:
            await client.call("shop_order")
        assert caught.value.code == -32602
        start = "The server 'shop' can't be used at the moment, so its tools are missing. The server 'shop' "
        what, dot, remedy = caught.value.message.partition(start)[2].partition(". ")
        return f"{LEAD}{what}{NOT_SENT}{dot}{remedy}"


Behave = Callable[[ReceivedRequest], Awaitable[None]]


def with_lists(behave: Behave) -> Behave:
    """Behave in this way for calls and reads, and as usual for the rest."""

    async def answer(asked: ReceivedRequest) -> None:
        if asked.method in ("tools/call", "resources/read"):
            await behave(asked)
        elif asked.method == "server/discover":
            await asked.result(OFFER)
        elif asked.method in LISTED:
            await asked.result(LISTED[asked.method])
        else:
            await refuse(asked)

    return answer


async def fail_at(behave: Behave, **options: Any) -> str:
    """Return the error of a tool call. Reading a resource has the same one, with -32603."""
    async with misbehaving(with_lists(behave)) as server, run_gateway(server.url, **options) as client:
        text = await call(client)
        with pytest.raises(ServerError) as caught:
            await client.read("stock://shop/all")
        assert (caught.value.code, caught.value.message) == (-32603, text)
        sent = [each.method for each in server.requests if each.method in ("tools/call", "resources/read")]
        assert sent == ["tools/call", "resources/read"]  # once each
        return text


def status(line: str, body: bytes = b"", more: str = "", **options: Any) -> Callable[[], Awaitable[str]]:
    return lambda: fail_at(lambda asked: asked.reply(body, status=line, type="text/plain", more=more), **options)


async def hang(asked: ReceivedRequest) -> None:
    await asyncio.Event().wait()


async def drop(asked: ReceivedRequest) -> None:
    raise ConnectionError


async def stop_listening() -> str:
    mcp, stop, up = Server("shop"), asyncio.Event(), asyncio.Event()
    mcp.tool(name="order")(lambda: "Ordered.")
    port = free_port()

    async def run() -> None:
        async with mcp.running(), serve(mcp, port=port):
            up.set()
            await stop.wait()

    running = asyncio.create_task(run())
    await up.wait()
    async with run_gateway(f"http://127.0.0.1:{port}/mcp", start_timeout=1) as client:
        assert not (await client.call("shop_order")).is_error
        stop.set()
        await running
        while NOT_SENT not in (text := await call(client)):
            pass
        return text


async def stop_responding() -> str:
    is_blocked = False

    async def behave(asked: ReceivedRequest) -> None:
        await (hang if is_blocked else with_lists(lambda other: other.result({"content": []})))(asked)

    async with (
        misbehaving(behave) as server,
        run_gateway(server.url, start_timeout=1, timeout=0.3, connect_timeout=0.3) as client,
    ):
        is_blocked = True
        while NOT_SENT not in (text := await call(client)):
            pass
        return text


async def fail_to_resolve() -> str:
    def fail(*_: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket, "getaddrinfo", fail)
        return await fail_to_start("http://shop.invalid/mcp")


async def fail_to_trust(folder: Path) -> str:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*self_signed(folder))
    server = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0, ssl=context)
    async with server:
        return await fail_to_start(f"https://localhost:{server.sockets[0].getsockname()[1]}/mcp")


async def call_too_often() -> str:
    text = ""
    async with misbehaving(with_lists(drop)) as server, run_gateway(server.url) as client:
        for _ in range(6):  # five of them open the circuit breaker
            text = await call(client)
    return text


async def use_the_share() -> str:
    async with misbehaving(with_lists(hang)) as server, run_gateway(server.url, max_connections=1) as client:
        first = asyncio.create_task(client.call("shop_order"))
        await until(lambda: any(each.method == "tools/call" for each in server.requests))
        second = asyncio.create_task(call(client))
        await client.ping()  # the call has arrived at the gateway
        advance_clock(31)
        try:
            return await second
        finally:
            first.cancel()


async def exit_during_a_call() -> str:
    program = "import os\nfrom millstream import Server\nmcp = Server('shop')\n@mcp.tool\ndef order() -> None:\n"
    async with run_gateway([sys.executable, "-c", f"{program}    os._exit(7)\nmcp.run()"]) as client:
        return await call(client)


async def end_the_session() -> str:
    """Return the error of the call after the upstream has forgotten the caller's session."""
    valid: set[str] = set()
    count = 0

    async def behave(asked: ReceivedRequest) -> None:
        nonlocal count
        if asked.method == "initialize":
            count += 1
            valid.add(f"s{count}")
            await asked.result(GREETING, more=f"Mcp-Session-Id: s{count}\r\n")
        elif asked.verb != "POST":
            await asked.reply(b"", status="405 Method Not Allowed")
        elif asked.headers.get("mcp-session-id") not in valid:
            await asked.reply(b"", status="404 Not Found" if "mcp-session-id" in asked.headers else "400 Bad Request")
        elif "id" not in asked.message:
            await asked.reply(b"", status="202 Accepted")
        else:
            await asked.result(LISTED.get(asked.method, {"content": []}))

    async with misbehaving(behave) as upstream:
        mcp = Server("front")
        mcp.upstream("shop", upstream.url, start_timeout=WAIT, timeout=WAIT)
        async with (
            mcp.running(),
            serve(mcp) as front,
            Client(f"http://127.0.0.1:{front.port}/mcp", revision=OLD, timeout=WAIT) as client,
        ):
            assert not (await client.call("shop_order")).is_error
            valid.clear()
            text = await call(client)
            assert not (await client.call("shop_order")).is_error  # in a new session
            return text


async def test_callers_get_the_messages_of_the_failure_tables(tmp_path: Path) -> None:
    failures: dict[str, Callable[[], Awaitable[str]]] = {
        "nothing listens at the URL": stop_listening,
        "it doesn't respond to the gateway's test request either": stop_responding,
        "the host name doesn't exist": fail_to_resolve,
        "its certificate isn't trusted": lambda: fail_to_trust(tmp_path),
        "the command doesn't exist": lambda: fail_to_start(["no-such-command-here"]),
        "the command exits when it starts": lambda: fail_to_start([sys.executable, "-c", ""]),
        "five calls of yours to this tool have failed": call_too_often,
        "you're using all slots": use_the_share,
        "429": status("429 Too Many Requests", b"slow down", "Retry-After: 17\r\n"),
        "401, and the gateway has no credentials": status("401 Unauthorized"),
        "401, and it has": status("401 Unauthorized", headers={"Authorization": "Bearer old"}),
        "403 with a reason": status("403 Forbidden", b"Your role can't order"),
        "403 that asks for more scopes": status(
            "403 Forbidden",
            more='WWW-Authenticate: Bearer error="insufficient_scope", scope="orders"\r\n',
            auth=bearer("token"),
        ),
        "404, 405, or 410": status("404 Not Found"),
        "another status": status("503 Service Unavailable"),
        "no response in time": lambda: fail_at(hang, timeout=0.5),
        "the connection closes during the call": lambda: fail_at(drop),
        "the process exits during the call": exit_during_a_call,
        "the response is too large": lambda: fail_at(lambda asked: asked.reply(b"x" * 100_000), max_bytes=10_000),
        "the response isn't valid JSON-RPC": lambda: fail_at(lambda asked: asked.reply(b"{")),
        "the response is a web page": lambda: fail_at(lambda asked: asked.reply(b"<html>", type="text/html")),
        "the session with you has ended": end_the_session,
    }
    shown = read_tables()
    async with asyncio.timeout(3 * WAIT):
        found = {what: (await fail()).removeprefix(LEAD) for what, fail in failures.items()}
    assert found == shown
