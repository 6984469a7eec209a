"""HTTP errors of upstreams and servers, and the messages about them for models and people."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import pytest

from client.misbehaving_servers import GREETING, OFFER, ReceivedRequest, misbehaving, refuse
from millstream import Context, Server
from millstream.client import Client, ClientError, ConnectionLost, ServerError
from millstream.gateway import Redaction, UpstreamPolicy
from millstream.protocol import BY_DATE
from patience import WAIT

pytestmark = pytest.mark.server

TOOLS = {"tools": [{"name": "hello", "inputSchema": {"type": "object"}}]}
Reply = tuple[str, str, bytes, str]
JSON, TEXT, HTML = "application/json", "text/plain", "text/html; charset=utf-8"
WRONG_URL = "If it isn't starting up, the gateway's operator has to correct its URL."
CASES: list[tuple[Reply, str]] = [
    (("429 Too Many Requests", JSON, b'{"error":"slow down"}', "Retry-After: 17\r\n"),
     "responded with status 429: slow down. Try again in 17 seconds."),
    (("429 Too Many Requests", TEXT, b"monthly quota used up", ""),
     "responded with status 429: monthly quota used up."),
    (("403 Forbidden", TEXT, b"Your role may not call hello", ""),
     "responded with status 403: Your role may not call hello."),
    (("403 Forbidden", TEXT, b"", ""),
     "requires credentials. Its operator has to add them. It responded with status 403."),
    (("401 Unauthorized", JSON, b'{"error":"invalid_token","error_description":"The key is expired"}', ""),
     "requires credentials. Its operator has to add them. It responded with status 401: The key is expired."),
    (("404 Not Found", TEXT, b"no such tenant", ""), f"responded with status 404: no such tenant. {WRONG_URL}"),
    (("402 Payment Required", "application/problem+json", b'{"title":"Pay","detail":"The plan has ended"}', ""),
     "responded with status 402: The plan has ended."),
    (("413 Content Too Large", "", b"", ""), "responded with status 413."),
    (("400 Bad Request", JSON, b'{"errors":[{"msg":"x"}],"error":{"message":"no tenant"}}', ""),
     "responded with status 400: no tenant."),
    (("502 Bad Gateway", HTML, b"<html><head><style>p{}</style><title>cloudflare</title></head></html>", ""),
     "responded with status 502: cloudflare."),
    (("503 Service Unavailable", "application/octet-stream", b"\0\xff", ""), "responded with status 503."),
    (("500 Internal Server Error", TEXT, b"x" * 5000, ""), "responded with status 500: " + "x" * 300 + "."),
]  # fmt: skip


@asynccontextmanager
async def upstream(reply: Reply, *, handshake: bool) -> AsyncIterator[str]:
    """Run a server that responds to calls with an HTTP error."""

    async def behave(request: ReceivedRequest) -> None:
        status, kind, body, more = reply
        method = request.method
        if method == "tools/call":
            await request.reply(body, status=status, type=kind, more=more)
        elif method == "initialize":
            await request.result(GREETING)
        elif method == "tools/list":
            await request.result(TOOLS)
        elif method == "server/discover" and not handshake:
            await request.result(OFFER)
        else:
            await refuse(request)

    async with misbehaving(behave) as server:
        yield server.url


async def refusal(reply: Reply, *, handshake: bool, **options: Any) -> str:
    async with upstream(reply, handshake=handshake) as url:
        mcp = Server("front")
        mcp.upstream("odd", url, prefix="", start_timeout=WAIT, **options)
        async with Client(mcp, timeout=WAIT) as client:
            return (await client.call("hello", raise_on_error=False)).text


@pytest.mark.parametrize("handshake", [False, True], ids=["per-request", "handshake"])
async def test_models_see_the_upstreams_status_and_reason(*, handshake: bool) -> None:
    for reply, text in CASES:
        said = await refusal(reply, handshake=handshake)
        assert said == f"The server 'odd' behind this gateway {text}"


async def test_retry_after_can_be_a_date() -> None:
    later = format_datetime(datetime.now(UTC) + timedelta(hours=2), usegmt=True)
    said = await refusal(("503 Busy", TEXT, b"busy", f"Retry-After: {later}\r\n"), handshake=False)
    assert " Try again in 7,2" in said or " Try again in 7,1" in said


async def test_rejection_reasons_are_redacted_by_the_policy() -> None:
    policy = UpstreamPolicy(redact_results=[Redaction("[a-z]+@example.com", "[email]")])
    said = await refusal(("429 Busy", TEXT, b"ask ada@example.com", ""), handshake=False, policy=policy)
    assert said.endswith("responded with status 429: ask [email].")


async def test_rejection_mentions_the_operators_credentials() -> None:
    reply = ("401 Unauthorized", TEXT, b"key revoked", "")
    said = await refusal(reply, handshake=False, headers={"Authorization": "Bearer k"})
    assert "rejected the gateway's credentials. Its operator has to replace them." in said
    assert said.endswith("It responded with status 401: key revoked.")


async def test_error_for_a_lost_connection_warns_of_a_possible_effect() -> None:
    async def behave(request: ReceivedRequest) -> None:
        if request.method == "tools/call":
            raise ConnectionError
        await request.result({"server/discover": OFFER, "tools/list": TOOLS}.get(request.method, {}))

    async with misbehaving(behave) as server:
        mcp = Server("front")
        mcp.upstream("odd", server.url, prefix="", start_timeout=WAIT)
        async with Client(mcp, timeout=WAIT) as client:
            said = (await client.call("hello", raise_on_error=False)).text
    assert "may have taken effect" in said


async def test_client_errors_include_status_reason_and_retry_time() -> None:
    async with upstream(CASES[0][0], handshake=False) as url, Client(url, timeout=WAIT) as client:
        with pytest.raises(ConnectionLost, match=r"status 429: slow down\. Try again in 17 seconds") as caught:
            await client.call("hello")
        assert (caught.value.status, caught.value.detail, caught.value.retry_after) == (429, "slow down", 17)
    async with upstream(CASES[5][0], handshake=False) as url, Client(url, timeout=WAIT) as client:
        with pytest.raises(ClientError, match="responded with status 404: no such tenant") as refused:
            await client.call("hello")
        assert (refused.value.status, refused.value.retry_after) == (404, None)


@pytest.mark.parametrize("revision", [each.date for each in BY_DATE.values() if each.handshake])
@pytest.mark.parametrize("upstream_revision", [None, "2025-11-25", "2026-07-28"])
async def test_tool_that_asks_a_client_that_cannot_be_asked_fails_in_its_result(
    revision: str, upstream_revision: str | None
) -> None:
    upstream, mcp = make_asking(), Server("front")
    mcp.upstream("shop", upstream, start_timeout=WAIT, revision=upstream_revision)
    for server, name in ((upstream, "ask"), (mcp, "shop_ask")):
        async with Client(server, timeout=WAIT, revision=revision) as client:
            result = await client.call(name, raise_on_error=False)
            assert result.is_error
            assert "elicitation" in result.text


async def test_tool_that_asks_a_newer_client_that_cannot_be_asked_is_refused() -> None:
    mcp = Server("front")
    mcp.upstream("shop", make_asking(), start_timeout=WAIT)
    async with Client(mcp, timeout=WAIT, revision="2026-07-28") as client:
        with pytest.raises(ServerError, match=r"-32021"):
            await client.call("shop_ask")


def make_asking() -> Server:
    mcp = Server("shop")

    @mcp.tool
    async def ask(ctx: Context) -> str:
        return str(await ctx.elicit("Where?", int))

    return mcp
