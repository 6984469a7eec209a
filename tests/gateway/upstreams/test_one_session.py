"""A server at a URL that allows one session: a gateway's callers share it with the lists, where that's safe."""

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import pytest

from cases import for_each
from client.misbehaving_servers import ReceivedRequest, misbehaving, with_handshake
from command_line import run_in_process
from http_peer import serve
from millstream import Client, Server, auth
from millstream.client import ServerError
from patience import WAIT
from processes import NODE, ROOT, free_port, run_server

HANDSHAKE, OLDER, PER_REQUEST = "2025-11-25", "2025-06-18", "2026-07-28"
ADA, BOB = "ada-has-a-key-of-some-length", "bob-has-another-of-some-length"
# What a StreamableHTTPServerTransport of @modelcontextprotocol/sdk 1.32.2 sends, with status 400, for a second
# `initialize`.
REFUSAL = {"code": -32600, "message": "Invalid Request: Server already initialized"}
ADVICE = "Restart the server, or let it allow several sessions"

pytestmark = pytest.mark.server


@contextmanager
def counter(port: int, log: Path) -> Iterator[str]:
    """Run a server of the TypeScript SDK that allows one session, and yield its URL."""
    script = ROOT / "tests/gateway/foreign/one_session.mjs"
    with run_server([NODE, str(script), str(ROOT / "tests/interop"), str(port)], port, log):
        yield f"http://127.0.0.1:{port}/mcp"


@asynccontextmanager
async def gateway(url: str, *, guard: Any = None, **options: Any) -> AsyncIterator[str]:
    """Run a gateway in front of the server, and yield its URL."""
    mcp = Server("front", auth=guard)
    mcp.upstream("counter", url, start_timeout=WAIT, timeout=WAIT, **options)
    async with mcp.running(), serve(mcp) as front:
        yield f"http://127.0.0.1:{front.port}/mcp"


async def count(url: str, revision: str | None, key: str = "", name: str = "count") -> str:
    """Call the tool in a session of its own."""
    headers = {"authorization": f"Bearer {key}"} if key else {}
    async with Client(url, revision=revision, headers=headers, timeout=WAIT) as client:
        assert [tool.name for tool in await client.tools()] == [name]
        return (await client.call(name)).text


@for_each("prefix", ["", "c"])  # a relay, and a gateway that makes its own lists
async def test_only_session_of_a_server_is_shared_by_its_callers(
    prefix: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.clear()
    name = "c_count" if prefix else "count"
    with counter(free_port(), tmp_path / "log") as behind:
        async with asyncio.timeout(2 * WAIT), gateway(behind, prefix=prefix) as url:
            assert await count(url, HANDSHAKE, name=name) == "1"
            callers = [count(url, revision, name=name) for revision in (HANDSHAKE, OLDER, None, PER_REQUEST)]
            assert sorted(await asyncio.gather(*callers)) == ["2", "3", "4", "5"]
    told = [record.message for record in caplog.records if "allows, and what it remembers" in record.message]
    assert told == ["Isolation: all callers of counter share the only session that it allows, and what it remembers"]


async def test_per_request_clients_of_a_catalog_share_the_only_session(tmp_path: Path) -> None:
    with counter(free_port(), tmp_path / "log") as behind:
        async with asyncio.timeout(2 * WAIT), gateway(behind, prefix="c") as url:
            assert [await count(url, PER_REQUEST, name="c_count") for _ in range(2)] == ["1", "2"]


async def test_only_session_is_shared_again_after_the_server_restarts(tmp_path: Path) -> None:
    with ExitStack() as stack:
        stack.enter_context(counter(port := free_port(), tmp_path / "log"))
        async with asyncio.timeout(3 * WAIT), gateway(f"http://127.0.0.1:{port}/mcp", prefix="") as url:
            assert await count(url, HANDSHAKE) == "1"
            stack.close()
            with counter(port, tmp_path / "log2"):
                found = ""
                while found != "1":  # the first requests can find the closed connections
                    try:
                        found = await count(url, HANDSHAKE)
                    except (ServerError, AssertionError) as exc:
                        assert "counter" in str(exc)  # noqa: PT017  it's retried
                assert await asyncio.gather(count(url, HANDSHAKE), count(url, PER_REQUEST)) in (["2", "3"], ["3", "2"])


@for_each("prefix", ["", "c"])
async def test_refusal_of_another_session_says_what_to_do(
    prefix: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with counter(free_port(), tmp_path / "log") as behind:
        async with asyncio.timeout(2 * WAIT), Client(behind, timeout=WAIT) as first:
            assert first.server is not None
            async with gateway(behind, prefix=prefix) as url:  # the session is in use
                if prefix:
                    async with Client(url, timeout=WAIT) as second:
                        assert not await second.tools()
                else:
                    with pytest.raises(ServerError, match=ADVICE):
                        await count(url, HANDSHAKE)
        assert "Server already initialized (-32600). It allows one session, which another client has" in caplog.text
        with pytest.raises(ServerError, match=ADVICE):  # the session has ended
            await count(behind, None)


def test_doctor_says_what_to_do_about_an_only_session_that_has_ended(tmp_path: Path) -> None:
    with counter(free_port(), tmp_path / "log") as behind:
        assert asyncio.run(count(behind, HANDSHAKE)) == "1"
        file = tmp_path / "gateway.toml"
        file.write_text(f'[upstreams.counter]\nurl = "{behind}"\n')
        done = run_in_process("doctor", str(file), "--json")
    found = {step["name"]: step["found"] for step in json.loads(done.stdout)["steps"]}
    assert ADVICE in found["upstream counter"]


SHARING = {
    # isolation, people with keys -> the words of the refusal, or empty if all share the session
    ("shared", 2): "",
    (None, 2): "signed-in callers don't share one by default",
    ("per_principal", 2): 'isolation = "per_principal" keeps callers apart',
    ("per_session", 0): 'isolation = "per_session" keeps callers apart',
    (None, 1): "",
}


@asynccontextmanager
async def stub() -> AsyncIterator[str]:
    """Run a server that refuses a second session in the words of the TypeScript SDK."""
    sessions: list[str] = []

    async def behave(asked: ReceivedRequest) -> None:
        if asked.method == "tools/list":
            await asked.result({"tools": [{"name": "count", "inputSchema": {"type": "object"}}]})
        elif asked.method == "tools/call":
            token = asked.headers.get("x-token", "")
            await asked.result({"content": [{"type": "text", "text": f"{asked.headers['mcp-session-id']} {token}"}]})
        elif asked.method:
            await asked.result({})
        else:
            await asked.reply(b"", status="405 Method Not Allowed")

    answer = with_handshake(behave, "only")

    async def once(asked: ReceivedRequest) -> None:
        if asked.method == "initialize" and sessions:
            reply = {"jsonrpc": "2.0", "id": None, "error": REFUSAL}
            await asked.reply(json.dumps(reply).encode(), status="400 Bad Request")
            return
        if asked.method == "initialize":
            sessions.append("only")
        await answer(asked)

    async with misbehaving(once) as server:
        yield server.url


@for_each("prefix", ["", "c"])
async def test_callers_that_must_be_kept_apart_are_refused(prefix: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    for (isolation, people), words in SHARING.items():
        keys = [ADA, BOB][:people]
        guard = auth.keys(named_keys={key[:3]: key for key in keys}) if keys else None
        options: dict[str, Any] = {"guard": guard, "isolation": isolation, "prefix": prefix}
        async with asyncio.timeout(2 * WAIT), stub() as behind, gateway(behind, **options) as url:
            for key in keys or [""]:
                called = count(url, HANDSHAKE, key, name="c_count" if prefix else "count")
                if words:
                    with pytest.raises(ServerError, match=f"allows one session, and .*{words}.*isolation = "):
                        await called
                else:
                    assert (await called).strip() == "only", (isolation, people)


async def test_callers_with_credentials_of_their_own_do_not_share_a_session() -> None:
    options: dict[str, Any] = {"prefix": "", "forward_headers": ["x-token"]}
    async with asyncio.timeout(2 * WAIT), stub() as behind, gateway(behind, **options) as url:
        assert (await count(url, HANDSHAKE)).strip() == "only"
        with pytest.raises(ServerError, match="callers with credentials of their own there can't share it"):
            async with Client(url, revision=HANDSHAKE, headers={"x-token": "ada"}, timeout=WAIT) as client:
                await client.call("count")
