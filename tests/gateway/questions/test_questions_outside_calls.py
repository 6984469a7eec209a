"""Questions that an upstream asks while none of its calls is running."""

import asyncio
import json
import sys
from contextlib import AsyncExitStack
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from client.misbehaving_servers import GREETING, ReceivedRequest, misbehaving, with_handshake
from http_peer import serve
from millstream import Client, Server, Settings, auth
from millstream.client import ServerError
from millstream.client.lowlevel import Notification
from patience import WAIT

pytestmark = pytest.mark.server

ROOT = "file:///home/ada/opened"
FOLDERS = r"""
import json, sys

def say(**message):
    print(json.dumps({"jsonrpc": "2.0", **message}), flush=True)

answer, waiting, declared = None, [], {}
for line in sys.stdin:
    message = json.loads(line)
    method, result = message.get("method"), {}
    if method == "initialize":
        declared = message["params"]["capabilities"]
        about = {"name": "folders", "version": "1"}
        result = {"protocolVersion": sys.argv[1], "capabilities": {"tools": {}}, "serverInfo": about}
    elif method in ("notifications/initialized", "notifications/roots/list_changed"):
        if "roots" in declared:
            say(method="roots/list", id="r")
    elif method == "tools/list":
        result["tools"] = [{"name": "folders", "inputSchema": {"type": "object"}}]
    elif message.get("id") == "r":
        answer = message
        for each in waiting:
            say(id=each, result={"content": [{"type": "text", "text": json.dumps(answer)}]})
        waiting.clear()
        continue
    elif method == "tools/call":
        if answer is None:
            waiting.append(message["id"])
            continue
        result["content"] = [{"type": "text", "text": json.dumps(answer)}]
    if "id" in message:
        say(id=message["id"], result=result)
"""
"""A server that asks for the roots when it starts, as the reference server for files does. Its tool `folders` returns
the answer.
"""


def front(tmp_path: Path, kind: str, own: str) -> list[str]:
    """Return a command that serves one client, with the server behind it."""
    program = [sys.executable, "-m", "millstream"]
    command = [sys.executable, "-c", FOLDERS, own]
    if kind == "relay":
        return [*program, "run", "--transport", "stdio", "--", *command]
    file = tmp_path / "gateway.toml"
    table = {"command": command, "prefix": "", "isolation": kind, "policy": {"deny": ["nothing"]}}
    lines = [f"{key} = {json.dumps(value)}" for key, value in table.items() if key != "policy"]
    file.write_text("\n".join(["[upstreams.a]", *lines, '[upstreams.a.policy]\ndeny = ["nothing"]']))
    return [*program, "gateway", str(file), "--transport", "stdio"]


@pytest.mark.parametrize("kind", ["relay", "shared", "per_principal", "per_session"])
@pytest.mark.parametrize("own", ["2025-06-18", "2025-11-25"])
async def test_server_that_asks_for_the_roots_at_its_start_gets_those_of_the_only_client(
    kind: str, own: str, tmp_path: Path
) -> None:
    for revision in ("2024-11-05", "2025-06-18", "2025-11-25"):
        async with (
            asyncio.timeout(WAIT),
            Client(front(tmp_path, kind, own), revision=revision, roots=[ROOT], timeout=WAIT) as client,
        ):
            answer = json.loads((await client.call("folders")).text)
            assert [each["uri"] for each in answer["result"]["roots"]] == [ROOT], revision


@pytest.mark.parametrize("prefix", ["", "far"], ids=["relay", "catalog"])
async def test_process_of_several_clients_gets_the_roots_of_none(prefix: str) -> None:
    mcp = Server("front")
    command = [sys.executable, "-c", FOLDERS, "2025-11-25"]
    mcp.upstream("far", command, prefix=prefix, start_timeout=WAIT, timeout=WAIT, isolation="shared")
    async with asyncio.timeout(WAIT), mcp.running(), AsyncExitStack() as stack:
        running = await stack.enter_async_context(serve(mcp))
        url, options = f"http://127.0.0.1:{running.port}/mcp", dict[str, Any](revision="2025-11-25", timeout=WAIT)
        ada = await stack.enter_async_context(Client(url, roots=[ROOT], **options))
        await stack.enter_async_context(Client(url, roots=["file:///home/eve"], **options))
        answer = json.loads((await ada.call(f"{prefix}_folders" if prefix else "folders")).text)
        assert "No call is running, so no client can be asked" in answer["error"]["message"]


ASKS_AT_ITS_START = r"""
import json, sys

def say(**message):
    print(json.dumps({"jsonrpc": "2.0", **message}), flush=True)

def finish():
    for each in waiting:
        say(id=each, result={"content": [{"type": "text", "text": json.dumps(answer)}]})
    waiting.clear()

FORM = {"type": "object", "properties": {"x": {"type": "string"}}}
QUESTION = {"message": "Is it secret-77?", "requestedSchema": FORM}
answer, waiting = None, []
for line in sys.stdin:
    message = json.loads(line)
    method, result = message.get("method"), {}
    if method == "initialize":
        about = {"name": "asks", "version": "1"}
        result = {"protocolVersion": "2025-11-25", "capabilities": {"tools": {}}, "serverInfo": about}
    elif method == "tools/list":
        result["tools"] = [{"name": name, "inputSchema": {"type": "object"}} for name in ("answer", "hang")]
    elif message.get("id") == "q":
        answer = message
        finish()
        continue
    elif method == "tools/call" and message["params"]["name"] == "hang":
        say(id="q", method=sys.argv[1], params=QUESTION if sys.argv[1] == "elicitation/create" else {})
        continue
    elif method == "tools/call":
        waiting.append(message["id"])
        if answer is not None:
            finish()
        continue
    elif method == "notifications/initialized" and sys.argv[2] == "at the start":
        say(id="q", method=sys.argv[1], params=QUESTION if sys.argv[1] == "elicitation/create" else {})
    if "id" in message:
        say(id=message["id"], result=result)
"""
"""A server that asks a question, and returns the answer by its tool `answer`. While its tool `hang` runs, it asks the
question without naming the call.
"""


def run_asking(tmp_path: Path, method: str, when: str, policy: str) -> list[str]:
    file = tmp_path / "gateway.toml"
    command = json.dumps([sys.executable, "-c", ASKS_AT_ITS_START, method, when])
    file.write_text(f'[upstreams.a]\ncommand = {command}\nprefix = ""\n[upstreams.a.policy]\n{policy}\n')
    return [sys.executable, "-m", "millstream", "gateway", str(file), "--transport", "stdio"]


async def test_form_outside_of_calls_is_asked_as_the_policy_allows(tmp_path: Path) -> None:
    asked: list[str] = []

    def answer(question: Any) -> dict[str, str]:
        asked.append(question.message)
        return {"x": "yes"}

    target = run_asking(tmp_path, "elicitation/create", "at the start", "redact_results = ['secret-[0-9]+']")
    async with (
        asyncio.timeout(WAIT),
        Client(target, revision="2025-11-25", elicit=answer, timeout=WAIT) as client,
    ):
        found = json.loads((await client.call("answer")).text)
    assert found["result"]["content"] == {"x": "yes"}
    assert asked == ["Is it [redacted]?"]


async def test_client_that_refuses_its_roots_is_asked_once(tmp_path: Path) -> None:
    asked = 0

    def refuse() -> list[str]:
        nonlocal asked
        asked += 1
        raise ValueError("no folder is open")

    target = run_asking(tmp_path, "roots/list", "later", 'deny = ["nothing"]')
    async with (
        asyncio.timeout(WAIT),
        Client(target, revision="2025-11-25", roots=refuse, timeout=WAIT) as client,
    ):
        hanging = asyncio.create_task(client.call("hang"))
        found = json.loads((await client.call("answer")).text)
        hanging.cancel()
        await asyncio.gather(hanging, return_exceptions=True)
    assert "error" in found
    assert asked == 1


FORM = {"type": "object", "properties": {"x": {"type": "string"}}}
KEYS = {name: f"the-key-of-{name}-0123456789" for name in ("eve", "ada")}


@pytest.mark.parametrize("prefix", ["", "far"], ids=["relay", "catalog"])
async def test_one_persons_sessions_leave_room_for_questions_to_others(prefix: str) -> None:
    numbers, events = count(1), asyncio.Queue[str]()

    async def ask_each_session(asked: ReceivedRequest) -> None:
        if asked.method == "initialize":
            await with_handshake(ask_each_session, f"session-{next(numbers)}")(asked)
        elif asked.verb == "GET":
            params = {"message": "Who?", "requestedSchema": FORM}
            question = {"jsonrpc": "2.0", "id": "q", "method": "elicitation/create", "params": params}
            await asked.stream()
            await asked.event(json.dumps(question).encode())
            await asyncio.Event().wait()
        elif asked.message.get("id") == "q":
            events.put_nowait(json.dumps(asked.message.get("result") or asked.message["error"]))
            await asked.reply(b"", status="202 Accepted")
        elif asked.method == "tools/list":
            await asked.result({"tools": [{"name": "work", "inputSchema": {"type": "object"}}]})
        elif asked.method == "tools/call":
            await asked.result({"content": []})
        else:
            await with_handshake(ask_each_session)(asked)

    async def wait_forever(question: Any) -> None:
        events.put_nowait("Eve is asked")
        await asyncio.Event().wait()

    async with asyncio.timeout(WAIT), AsyncExitStack() as stack:
        behind = await stack.enter_async_context(misbehaving(ask_each_session))
        mcp = Server("front", auth=auth.keys(named_keys=KEYS), settings=Settings(max_pending_inputs=2))
        mcp.upstream("far", behind.url, prefix=prefix, start_timeout=WAIT, timeout=WAIT)
        await stack.enter_async_context(mcp.running())
        front = await stack.enter_async_context(serve(mcp))
        for name, elicit in (("eve", wait_forever), ("eve", wait_forever), ("ada", lambda _: {"x": "Ada"})):
            client = Client(
                f"http://127.0.0.1:{front.port}/mcp",
                headers={"authorization": f"Bearer {KEYS[name]}"},
                revision="2025-11-25",
                elicit=elicit,
                timeout=WAIT,
            )
            await stack.enter_async_context(client)
            await client.call(f"{prefix}_work" if prefix else "work")
            happened = await events.get()
        assert json.loads(happened)["content"] == {"x": "Ada"}


PAYS = r"""
import json, sys
def say(**message):
    print(json.dumps({"jsonrpc": "2.0", **message}), flush=True)
for line in sys.stdin:
    message = json.loads(line)
    method, params = message.get("method"), message.get("params", {})
    result, error = {}, None
    if method == "initialize":
        about = {"name": "shop", "version": "1"}
        result = {"protocolVersion": "2025-11-25", "capabilities": {"tools": {}}, "serverInfo": about}
    elif method == "tools/list":
        result["tools"] = [{"name": name, "inputSchema": {"type": "object"}} for name in ("pay", "finish")]
    elif method == "tools/call":
        arguments, result = params["arguments"], {"content": []}
        url = {"mode": "url", "message": "Pay", "url": "https://example.com", "elicitationId": arguments["id"]}
        if params["name"] == "pay":
            error = {"code": -32042, "message": "Pay first", "data": {"elicitations": [url]}}
        else:
            say(method="notifications/elicitation/complete", params={"elicitationId": arguments["id"]})
    if "id" in message and method:
        say(id=message["id"], **({"error": error} if error else {"result": result}))
"""
"""A server whose clients have to open a URL. Its tool `finish` reports that one of them did."""


@pytest.mark.parametrize("prefix", ["", "far"], ids=["relay", "catalog"])
async def test_completed_url_is_reported_to_the_client_that_opened_it_after_its_call(prefix: str) -> None:
    mcp = Server("front")
    command = [sys.executable, "-c", PAYS]
    mcp.upstream("far", command, prefix=prefix, start_timeout=WAIT, timeout=WAIT, isolation="shared")
    heard: list[tuple[str, str]] = []
    arrived = asyncio.Event()

    def note(who: str, notification: Notification) -> None:
        if notification.method == "notifications/elicitation/complete":
            heard.append((who, json.loads(bytes(notification.params))["elicitationId"]))
            arrived.set()

    async with asyncio.timeout(WAIT), mcp.running(), AsyncExitStack() as stack:
        running = await stack.enter_async_context(serve(mcp))
        url, clients = f"http://127.0.0.1:{running.port}/mcp", dict[str, Client]()
        for who in ("ada", "eve"):
            client = Client(url, revision="2025-11-25", elicit=lambda question: True, timeout=WAIT)
            client.conversation.requests.incoming.observer = partial(note, who)
            clients[who] = await stack.enter_async_context(client)
            with pytest.raises(ServerError, match="Pay first"):
                await client.call(f"{prefix}_pay" if prefix else "pay", id=f"{who}'s")
        for name in ("unknown", "eve's", "ada's"):
            arrived.clear()
            await clients["eve"].call(f"{prefix}_finish" if prefix else "finish", id=name)
            if name != "unknown":
                await arrived.wait()
    assert heard == [("eve", "eve's"), ("ada", "ada's")]


class Bridge:
    """A server over HTTP+SSE that sends each question to all its streams, and takes the first answer."""

    def __init__(self) -> None:
        self.streams: list[ReceivedRequest] = []
        self._call: tuple[ReceivedRequest, ReceivedRequest] | None = None
        """A call and its stream, until its question is answered."""

    async def behave(self, asked: ReceivedRequest) -> None:
        if asked.verb == "GET":
            self.streams.append(asked)
            await asked.stream()
            await asked.chunk(f"event: endpoint\ndata: /messages/{len(self.streams) - 1}\n\n".encode())
            await asyncio.Event().wait()
        elif "/messages/" in asked.path:
            await asked.reply(b"", status="202 Accepted")
            await self._take(asked, self.streams[int(asked.path.rpartition("/")[2])])
        else:
            await asked.reply(b"", status="405 Method Not Allowed")

    async def _take(self, asked: ReceivedRequest, stream: ReceivedRequest) -> None:
        if asked.method == "tools/call":
            self._call = asked, stream
            for each in self.streams:  # from the oldest, which reads the lists
                await each.say("elicitation/create", {"message": "Who?", "requestedSchema": FORM}, id="q")
        elif asked.message.get("id") == "q" and self._call is not None:
            (call, caller), self._call = self._call, None
            await caller.event(call.answer({"content": [{"type": "text", "text": json.dumps(asked.message)}]}))
        elif asked.method and "id" in asked.message:
            tools = [{"name": "order", "inputSchema": {"type": "object"}}]
            await stream.event(asked.answer({**GREETING, "tools": tools}))


@pytest.mark.parametrize("prefix", ["", "far"], ids=["relay", "catalog"])
async def test_question_that_a_bridge_sends_to_all_its_connections_is_answered_by_the_caller(
    prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("millstream._gateway.messages.router._MOMENT", 0.1)
    bridge = Bridge()

    async def think(question: Any) -> dict[str, str]:
        await asyncio.sleep(0.5)  # as people do
        return {"x": "Ada"}

    async with asyncio.timeout(WAIT), AsyncExitStack() as stack:
        behind = await stack.enter_async_context(misbehaving(bridge.behave))
        mcp = Server("front")
        mcp.upstream("far", behind.url.replace("/mcp", "/sse"), prefix=prefix, start_timeout=WAIT, timeout=WAIT)
        await stack.enter_async_context(mcp.running())
        front = await stack.enter_async_context(serve(mcp))
        url = f"http://127.0.0.1:{front.port}/mcp"
        client = await stack.enter_async_context(Client(url, revision="2025-11-25", elicit=think, timeout=WAIT))
        found = json.loads((await client.call(f"{prefix}_order" if prefix else "order")).text)
        assert found["result"]["content"] == {"x": "Ada"}
        assert len(bridge.streams) > 1
