"""What a policy or scope denies is denied in each revision, transport, and batch, and after a token lost scopes."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from auth_world import STREAM, GuardedServer, run_guarded
from cases import for_each
from http_peer import Peer
from millstream import Principal, Server, Settings
from millstream.auth import AuthMethod, Identity
from millstream.gateway import PromptPolicy, ResourcePolicy, ToolPolicy, UpstreamPolicy
from patience import WAIT
from wire import per_request, request

FULL, SHRUNK, OTHER = "full", "shrunk", "other"
"""Tokens: Ada's with the scope, a later one of hers without it, and Bob's."""
TOKENS = {
    FULL: Principal("ada", scopes=frozenset({"secrets"}), claims={"department": "finance"}),
    SHRUNK: Principal("ada"),
    OTHER: Principal("bob"),
}
REVISIONS = ["2024-11-05", "2025-03-26", "2025-06-18", "2025-11-25"]
WAYS = [*REVISIONS, "batch", "no session", "sse", "socket", "per-request socket", "2026-07-28"]
USES: list[tuple[str, dict[str, Any]]] = [
    *(("tools/call", {"name": name, "arguments": {}}) for name in ("SECRET_a", "there_SECRET_a", "there_SECRET_b")),
    *(
        (method, {"uri": uri})
        for method in ("resources/read", "resources/subscribe")
        for uri in ("doc://SECRET", "doc://SECRET/x", "doc://SEC%52ET/%78", "up://there/SECRET", "up://there/SECRET/x")
    ),
    *(("prompts/get", {"name": name, "arguments": {"word": "w"}}) for name in ("SECRET_p", "there_SECRET_p")),
    *(
        ("completion/complete", {"ref": ref, "argument": {"name": name, "value": ""}})
        for ref, name in (
            ({"type": "ref/prompt", "name": "SECRET_p"}, "word"),
            ({"type": "ref/prompt", "name": "there_SECRET_p"}, "word"),
            ({"type": "ref/resource", "uri": "doc://SECRET/{name}"}, "name"),
            ({"type": "ref/resource", "uri": "up://there/SECRET/{name}"}, "name"),
        )
    ),
]
HIDDEN = "tools/call", {"name": "there_hidden_SECRET", "arguments": {}}
"""A call that the policy denies to everyone."""
LISTS = ["tools/list", "resources/list", "resources/templates/list", "prompts/list"]


class Tokens(AuthMethod):
    async def identify(self, credential: str) -> Identity | None:
        found = TOKENS.get(credential)
        return None if found is None else Identity(found, 0.0)


def add_items(server: Server, scheme: str, **options: Any) -> None:
    server.tool(name="SECRET_a", **options)(lambda: "SECRET-result")
    server.resource(f"{scheme}://SECRET", name="SECRET", **options)(lambda: "SECRET-text")

    @server.resource(f"{scheme}://SECRET/{{name}}", **options)
    def template(name: str) -> str:
        return f"SECRET-{name}"

    @server.prompt(name="SECRET_p", **options)
    def prompt(word: str) -> str:
        return f"SECRET-{word}"

    for reference, argument in (("SECRET_p", "word"), (f"{scheme}://SECRET/{{name}}", "name")):
        server.complete(reference, argument)(lambda value, arguments: ["SECRET-value"])


@asynccontextmanager
async def run_both() -> AsyncIterator[GuardedServer]:
    there = Server("there")
    add_items(there, "up")
    there.tool(name="SECRET_b")(lambda: "SECRET-result")
    there.tool(name="hidden_SECRET")(lambda: "SECRET-result")
    server = Server("here", serve="all", auth=Tokens(), settings=Settings())
    add_items(server, "doc", scopes=["secrets"])
    server.tool(name="open")(lambda: "open")
    rules: Any = {"scopes": ("secrets",)}
    policy = UpstreamPolicy(
        deny=("hidden_*",),
        tools={"SECRET_a": ToolPolicy(**rules), "SECRET_b": ToolPolicy(claims={"department": "finance"})},
        resources={"*": ResourcePolicy(**rules)},
        prompts={"*": PromptPolicy(**rules)},
    )
    server.upstream("there", there, policy=policy, timeout=WAIT)
    async with run_guarded(server) as world:
        yield world


async def ask_over_http(world: GuardedServer, key: str, sessions: str, messages: list[Any], revision: str) -> list[Any]:
    """Send each request in a session of another token of the same user, as a POST of its own or in a batch."""
    fields = {"mcp_session_id": await world.initialize(sessions, revision)} if revision else {}
    return [(await world.post(key, each, **fields)).message for each in messages]


async def open_stream(world: GuardedServer, key: str) -> tuple[Peer, str]:
    """Open an HTTP+SSE stream. Return it and the path for messages."""
    stream = await world.send(key, "GET", "/sse", **STREAM)
    await stream.head()
    return stream, (await stream.chunk()).split(b"data: ")[1].strip().decode()


async def ask_over_sse(world: GuardedServer, key: str, messages: list[Any]) -> list[Any]:
    stream, path = await open_stream(world, key)
    about = {"protocolVersion": "2024-11-05", "capabilities": {}, "clientInfo": {"name": "t", "version": "1"}}
    found: list[Any] = []
    for message in (request("initialize", about, 0), *messages):
        await world.ask(key, "POST", path, json.dumps(message).encode(), content_type="application/json")
        found.append(json.loads((await stream.chunk()).split(b"data: ")[1]))
    stream.close()
    return found[1:]


async def ask_over_socket(world: GuardedServer, key: str, messages: list[Any], *, handshake: bool) -> list[Any]:
    found: list[Any] = []
    async with world.socket(key, "mcp") as socket:
        if handshake:
            about = {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "t", "version": "1"}}
            await socket.send(json.dumps(request("initialize", about, 0)))
            await socket.recv()
        for message in messages:
            await socket.send(json.dumps(message))
            found.append(json.loads(await socket.recv()))
    return found


async def ask(world: GuardedServer, way: str, key: str, sessions: str, uses: list[tuple[str, Any]]) -> list[Any]:
    """Return the response to each request."""
    if way == "2026-07-28":
        names = [params.get("name") or params.get("uri") or "" for _, params in uses]
        replies = [await world.modern(key, *use, name) for use, name in zip(uses, names, strict=True)]
        return [each.message for each in replies]
    if way == "per-request socket":
        return await ask_over_socket(
            world, key, [per_request(*use, id=id) for id, use in enumerate(uses, 1)], handshake=False
        )
    messages = [request(*use, id) for id, use in enumerate(uses, 1)]
    if way == "socket":
        return await ask_over_socket(world, key, messages, handshake=True)
    if way == "sse":
        return await ask_over_sse(world, key, messages)
    if way == "batch":
        (found,) = await ask_over_http(world, key, sessions, [messages], "2025-03-26")
        return sorted(found, key=lambda each: int(each["id"]))
    return await ask_over_http(world, key, sessions, messages, "" if way == "no session" else way)


@for_each("way", WAYS)
async def test_denied_items_stay_denied(way: str) -> None:
    subscribes = way in (*REVISIONS, "batch", "sse", "socket")
    uses = [use for use in USES if subscribes or use[0] != "resources/subscribe"]
    async with run_both() as world:
        for key, sessions in ((FULL, FULL), (SHRUNK, FULL), (OTHER, OTHER)):
            for use, response in zip(uses, await ask(world, way, key, sessions, uses), strict=True):
                assert ("result" in response) == (key == FULL), (key, use, response)
                assert key == FULL or "SECRET-" not in str(response)
            (response,) = await ask(world, way, key, sessions, [HIDDEN])
            assert "Unknown tool" in response["error"]["message"]
            for response in await ask(world, way, key, sessions, [(each, {}) for each in LISTS]):
                assert ("SECRET" in str(response["result"])) == (key == FULL)
                assert "hidden" not in str(response["result"])


async def test_sse_streams_accept_only_tokens_with_their_scopes() -> None:
    call = json.dumps(request("tools/call", {"name": "SECRET_a", "arguments": {}})).encode()
    async with run_both() as world:
        for opens, posts in ((FULL, SHRUNK), (SHRUNK, FULL), (SHRUNK, SHRUNK), (FULL, FULL)):
            stream, path = await open_stream(world, opens)
            reply = await world.ask(posts, "POST", path, call, content_type="application/json")
            assert reply.status == (202 if opens == posts else 404)
            if opens == posts:
                assert (b"SECRET-" in await stream.chunk()) == (posts == FULL)
            stream.close()


async def test_updates_reach_only_tokens_that_may_read_the_resource() -> None:
    async with run_both() as world:
        session = await world.initialize(FULL)
        for uri in ("doc://SECRET", "up://there/SECRET"):
            message = request("resources/subscribe", {"uri": uri})
            assert (await world.post(FULL, message, mcp_session_id=session)).status == 200
        for number, key in enumerate((FULL, SHRUNK, FULL)):
            stream = await world.send(key, "GET", "/mcp", **STREAM, mcp_session_id=session)
            await stream.head()
            await stream.chunk()
            await world.server.resource_updated("doc://SECRET")
            world.server.tool(name=f"late{number}")(lambda: "late")
            seen = await stream.chunk()
            if key == FULL:
                assert b"doc://SECRET" in seen
                seen = await stream.chunk()
            assert b"list_changed" in seen
            stream.close()
