"""One process of a command that serves several callers, and which caller its messages reach."""

import asyncio
import logging
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from cases import for_each
from http_peer import serve
from millstream import Client, Principal, Server, Settings, auth
from millstream.client import Question, ServerError
from millstream.gateway import UpstreamPolicy
from patience import WAIT
from processes import ROOT

HANDSHAKE, PER_REQUEST = "2025-11-25", "2026-07-28"
ALICE, BOB = "alice-has-a-key-of-some-length", "bob-has-another-of-some-length"

ASKS_LATE = r"""
import json, sys
FORM = {"type": "object", "properties": {"x": {"type": "string"}}}

def say(**message):
    print(json.dumps({"jsonrpc": "2.0", **message}), flush=True)

def ask_late():
    say(method="notifications/message", params={"level": "error", "data": "The password of ask is 123."})
    say(method="elicitation/create", id="q", params={"message": "Password for ask?", "requestedSchema": FORM})

asking, working = False, None
for line in sys.stdin:
    message = json.loads(line)
    method, params = message.get("method"), message.get("params", {})
    result = {"protocolVersion": "2025-11-25", "capabilities": {"tools": {}}, "serverInfo": {"name": "late"}}
    if method == "tools/list":
        result = {"tools": [{"name": name, "inputSchema": {"type": "object"}} for name in ("ask", "work")]}
    elif method == "tools/call":
        if params["name"] == "ask":
            asking, token = True, params["_meta"]["progressToken"]
            say(method="notifications/progress", params={"progressToken": token, "progress": 1})
        else:
            working = message["id"]
            if not asking:
                ask_late()
        continue
    elif method == "notifications/cancelled":
        asking = False
        if working is not None:
            ask_late()
    elif message.get("id") == "q":
        text = json.dumps(message.get("result") or message["error"])
        say(id=working, result={"content": [{"type": "text", "text": text}]})
        working = None
        continue
    if "id" in message:
        say(id=message["id"], result=result)
"""
"""A server whose tool `ask` never ends, and whose tool `work` asks the question and logs the line of `ask`, as soon as
that was canceled.
"""


class Caller:
    """A client with a session, and what it was asked."""

    def __init__(self, url: str, key: str, revision: str = HANDSHAKE) -> None:
        self.questions: list[str] = []
        self.logs: list[Any] = []
        headers = {"authorization": f"Bearer {key}"} if key else {}
        self.client = Client(
            url, headers=headers, revision=revision, elicit=self.answer, on_log=self.hear, timeout=WAIT
        )

    def answer(self, question: Question) -> Any:
        self.questions.append(question.message)
        return {"x": "secret"}

    def hear(self, log: Any) -> None:
        self.logs.append(log.data)

    async def work(self) -> str:
        return (await self.client.call("work")).text

    async def hang_up(self) -> None:
        """Call a tool, and cancel the call once it's running."""
        running = asyncio.Event()
        call = asyncio.create_task(self.client.call("ask", progress=lambda *_: running.set()))
        await running.wait()
        call.cancel()
        await asyncio.gather(call, return_exceptions=True)


@asynccontextmanager
async def callers(*keys: str, revision: str = HANDSHAKE, **options: Any) -> AsyncIterator[list[Caller]]:
    """Run a gateway with one process of `ASKS_LATE`, and connect a caller with each key."""
    guard = auth.keys(named_keys={"alice": ALICE, "bob": BOB}) if any(keys) else None
    mcp = Server("front", auth=guard, settings=Settings(secret_key="a secret of the tests that is long enough"))
    mcp.upstream("late", [sys.executable, "-c", ASKS_LATE], prefix="", start_timeout=WAIT, timeout=WAIT, **options)
    async with asyncio.timeout(WAIT), mcp.running(), serve(mcp) as running:
        found = [Caller(f"http://127.0.0.1:{running.port}/mcp", key, revision) for key in keys]
        async with found[0].client, found[-1].client:
            yield found


@pytest.mark.server
@pytest.mark.parametrize(
    ("keys", "revision"),
    [((ALICE, BOB), HANDSHAKE), (("", ""), HANDSHAKE), (("", ""), PER_REQUEST)],
    ids=["principals", "anonymous sessions", "anonymous clients at one address"],
)
async def test_abandoned_calls_question_is_not_sent_to_other_callers(
    keys: tuple[str, str], revision: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "millstream.gateway")
    async with callers(*keys, revision=revision, isolation="shared") as (first, other):
        await first.hang_up()
        refusal = await other.work()
        assert "per_principal" in refusal
        assert "late" in refusal
        assert (first.questions, other.questions, first.logs, other.logs) == ([], [], [], [])
    assert "The password of ask is 123." in caplog.text
    assert 'isolation = "per_' in caplog.text


@pytest.mark.server
async def test_process_used_by_two_principals_cannot_ask_questions() -> None:
    async with callers(ALICE, BOB, isolation="shared") as (alice, bob):
        assert "secret" in await alice.work()
        assert "per_principal" in await bob.work()
        assert "per_principal" in await alice.work()
        assert (len(alice.questions), bob.questions, bob.logs) == (1, [], [])


@pytest.mark.server
async def test_process_used_by_one_caller_can_ask_questions() -> None:
    for keys, options in (((ALICE, ALICE), {}), (("", ""), {}), ((ALICE, BOB), {})):
        async with callers(*keys, **options) as (first, second):
            assert "secret" in await first.work()
            assert "secret" in await second.work()
            await second.hang_up()
            assert "secret" in await second.work()


@pytest.mark.server
async def test_every_principal_sees_that_the_policy_rejected_a_question() -> None:
    async with callers(ALICE, BOB, policy=UpstreamPolicy(questions=())) as (alice, bob):
        for caller in (alice, bob):
            refusal = await caller.work()
            assert "policy doesn't allow it" in refusal
            assert "per_principal" not in refusal
        assert alice.questions == bob.questions == []


OFFICIAL = [sys.executable, str(ROOT / "tests" / "client" / "foreign" / "official_two.py"), "stdio"]


def connect(mcp: Server, revision: str) -> Client:
    """Return a client that answers every kind of question."""
    return Client(
        mcp,
        revision=revision,
        elicit=lambda _: {"name": "Ada"},
        sample=lambda _: "a word",
        roots=["file:///work"],
        timeout=WAIT,
    )


async def visit_in_turn(old: Client, new: Client) -> None:
    """Check that both clients use the same process."""
    visits = [(await each.call("visit")).data for each in (old, new, old, new)]
    assert [each["count"] for each in visits] == [1, 2, 3, 4]
    assert len({each["process"] for each in visits}) == 1


@pytest.mark.server
async def test_clients_from_both_eras_share_one_process() -> None:
    mcp = Server("front")
    mcp.upstream("foreign", OFFICIAL, prefix="", start_timeout=WAIT, timeout=WAIT)
    async with (
        asyncio.timeout(WAIT), mcp.running(), connect(mcp, HANDSHAKE) as old, connect(mcp, PER_REQUEST) as new
    ):  # fmt: skip
        await visit_in_turn(old, new)


@pytest.mark.server
async def test_shared_process_changes_its_era_once_to_ask_questions(tmp_path: Path) -> None:
    mcp = Server("front", settings=Settings(store=f"sqlite:///{tmp_path}/gateway.db"))
    mcp.upstream("foreign", OFFICIAL, prefix="", start_timeout=WAIT, timeout=WAIT)
    answer = "Ada, a word, file:///work"
    for first in ("Call again.", answer):  # the choice outlives a restart of the gateway
        async with (
            asyncio.timeout(WAIT), mcp.running(), connect(mcp, HANDSHAKE) as old, connect(mcp, PER_REQUEST) as new
        ):  # fmt: skip
            assert first in (await old.call("ask", raise_on_error=False)).text
            assert [(await each.call("ask")).text for each in (old, new)] == [answer, answer]
            await visit_in_turn(old, new)


CANNOT_ASK = r"""
import json, sys
for line in sys.stdin:
    message = json.loads(line)
    method, answer = message.get("method"), {"error": {"code": -32601, "message": "Method not found"}}
    if method == "server/discover":
        versions, capabilities = ["2026-07-28"], {"tools": {}}
        answer = {"result": {"resultType": "complete", "supportedVersions": versions, "capabilities": capabilities}}
    elif method == "tools/list":
        tool = {"name": "go", "inputSchema": {"type": "object"}}
        answer = {"result": {"resultType": "complete", "tools": [tool]}}
    elif method == "tools/call":
        text = {"type": "text", "text": sys.argv[1]}
        answer = {"result": {"resultType": "complete", "content": [text], "isError": True}}
    print(json.dumps({"jsonrpc": "2.0", "id": message.get("id"), **answer}), flush=True)
"""


SDK_ERROR = (
    "Error executing tool go: Cannot send 'elicitation/create': this transport context has no back-channel for "
    "server-initiated requests."
)


@asynccontextmanager
async def ask_mute(text: str, revision: str, **options: Any) -> AsyncIterator[Callable[[], Awaitable[str]]]:
    """Yield a function that returns what a call says if the upstream can't ask and explains it with a text."""
    mcp, command = Server("front"), [sys.executable, "-c", CANNOT_ASK, text]
    mcp.upstream("mute", command, prefix="", start_timeout=WAIT, timeout=WAIT, **options)
    async with asyncio.timeout(WAIT), mcp.running(), connect(mcp, revision) as client:

        async def ask() -> str:
            return (await client.call("go", raise_on_error=False)).text

        yield ask


@pytest.mark.server
@for_each(
    "text",
    [
        SDK_ERROR,
        "'elicitation/create' cannot be sent while serving a request on that revision. Return inputRequired({ ... })",
        'failed: "elicitation/create" cannot be sent while serving a request on protocol version 2026-07-28: return',
        "server-to-client requests are not allowed on protocol 2026-07-28 or later; return InputRequiredResult instead",
        '"elicitation/create": server-initiated requests are not supported in protocol version 2026-07-28 or later',
    ],
)
async def test_every_sdk_error_about_questions_changes_the_era(text: str) -> None:
    async with ask_mute(text, HANDSHAKE) as ask:
        assert "Call again." in await ask()


@pytest.mark.server
async def test_process_without_handshake_keeps_its_era() -> None:
    async with ask_mute(SDK_ERROR, PER_REQUEST) as ask:
        assert "Call again." in await ask()
        assert [await ask() for _ in range(2)] == [SDK_ERROR] * 2


@pytest.mark.server
async def test_error_about_requests_to_clients_does_not_change_the_era() -> None:
    text = "There is no page about server-initiated requests."
    async with ask_mute(text, PER_REQUEST) as ask:
        assert await ask() == text


@pytest.mark.server
async def test_process_that_may_not_ask_questions_keeps_its_era() -> None:
    async with ask_mute(SDK_ERROR, PER_REQUEST, policy=UpstreamPolicy(questions=())) as ask:
        for _ in range(2):
            assert await ask() == (
                "The server 'mute' couldn't ask a question. The gateway's policy doesn't allow its questions."
            )


QUOTES = r"""
import json, sys
era = "2026-07-28"
for line in sys.stdin:
    message = json.loads(line)
    method, result = message.get("method"), {"capabilities": {"tools": {}}, "resultType": "complete"}
    if method == "server/discover":
        result |= {"supportedVersions": [era]}
    elif method == "initialize":
        era = "2025-11-25"
        result |= {"protocolVersion": era, "serverInfo": {"name": "quotes"}}
    elif method == "tools/list":
        result["tools"] = [{"name": "find", "inputSchema": {"type": "object"}}]
    elif method == "tools/call":
        text = f"{era}: there is no {message['params']['arguments']['word']}"
        result |= {"content": [{"type": "text", "text": text}], "isError": True}
    if "id" in message:
        print(json.dumps({"jsonrpc": "2.0", "id": message["id"], "result": result}), flush=True)
"""


@pytest.mark.server
async def test_error_that_quotes_its_caller_does_not_change_the_era() -> None:
    mcp = Server("front")
    mcp.upstream("quotes", [sys.executable, "-c", QUOTES], prefix="", start_timeout=WAIT, timeout=WAIT)
    async with asyncio.timeout(WAIT), mcp.running(), connect(mcp, PER_REQUEST) as client:
        for word in (SDK_ERROR, "book"):
            found = await client.call("find", word=word, raise_on_error=False)
            assert found.text == f"2026-07-28: there is no {word}"


class ProgramsOfAda(auth.AuthMethod):
    """Signs in one person, whose OAuth client is the credential."""

    async def identify(self, credential: str) -> auth.Identity | None:
        return auth.Identity(Principal("ada", "https://issuer.example", credential), 60.0)


@pytest.mark.server
@for_each("isolation", ["shared", "per_principal"])
async def test_questions_from_one_users_program_do_not_reach_another_program(isolation: Any) -> None:
    mcp = Server(
        "front", auth=ProgramsOfAda(), settings=Settings(secret_key="a secret of the tests that is long enough")
    )
    command = [sys.executable, "-c", ASKS_LATE]
    mcp.upstream("late", command, prefix="", isolation=isolation, start_timeout=WAIT, timeout=WAIT)
    async with asyncio.timeout(WAIT), mcp.running(), serve(mcp) as running:
        hostile, other = (Caller(f"http://127.0.0.1:{running.port}/mcp", each) for each in ("evil-app", "claude"))
        async with hostile.client, other.client:
            await hostile.hang_up()
            answer = await other.work()
    if isolation == "shared":
        assert "doesn't identify one of them" in answer
        assert (other.questions, other.logs) == ([], [])
    else:  # a process of its own
        assert "secret" in answer
    assert (hostile.questions, hostile.logs) == ([], [])


SLOW = """
import json, sys, time

time.sleep(3)  # loads its dependencies
for line in sys.stdin:
    asked = json.loads(line)
    greeting = {"protocolVersion": "2025-11-25", "capabilities": {"tools": {}}, "serverInfo": {"name": "s"}}
    result = greeting if asked["method"] == "initialize" else {"tools": [{"name": "late", "inputSchema": {}}]}
    if "id" in asked:
        print(json.dumps({"jsonrpc": "2.0", "id": asked["id"], "result": result}), flush=True)
"""


@pytest.mark.server
async def test_process_that_starts_more_slowly_than_the_timeout_is_given_longer(tmp_path: Path) -> None:
    file = tmp_path / "slow.py"
    file.write_text(SLOW)
    gateway = Server("gateway")
    gateway.upstream("s", [sys.executable, str(file)], revision="2025-11-25", timeout=1, start_timeout=0)
    changed = asyncio.Event()
    async with Client(gateway, revision=HANDSHAKE, on_change=lambda change: changed.set()) as client:
        async with asyncio.timeout(WAIT):
            await changed.wait()
        assert [tool.name async for tool in client.tools(fresh=True)] == ["s_late"]


REMEMBERS = r"""
import json, sys
REVISION, watched, level = sys.argv[1], set(), "debug"

def say(**message):
    print(json.dumps({"jsonrpc": "2.0", **message}), flush=True)

for line in sys.stdin:
    message = json.loads(line)
    method, params = message.get("method"), message.get("params", {})
    result = {
        "protocolVersion": REVISION,
        "capabilities": {"tools": {}, "logging": {}, "resources": {"subscribe": True}},
        "serverInfo": {"name": "remembers", "version": "1"},
    }
    if method == "tools/list":
        result = {"tools": [{"name": "touch", "inputSchema": {"type": "object"}}]}
    elif method == "resources/list":
        result = {"resources": [{"uri": "doc://1", "name": "one"}]}
    elif method == "resources/subscribe":
        watched.add(params["uri"])
        result = {}
    elif method == "resources/unsubscribe":
        watched.discard(params["uri"])
        result = {}
    elif method == "logging/setLevel":
        level, result = params["level"], {}
    elif method == "tools/call":
        if "doc://1" in watched:
            say(method="notifications/resources/updated", params={"uri": "doc://1"})
        result = {"content": [{"type": "text", "text": level}]}
    if "id" in message:
        say(id=message["id"], result=result)
"""
"""A server that announces its resource when `touch` is called, which returns the log level of the session."""


@pytest.mark.server
@pytest.mark.parametrize("revision", ["2024-11-05", "2025-03-26", "2025-06-18", "2025-11-25"])
@pytest.mark.parametrize("own", ["2025-06-18", "2025-11-25"])
async def test_callers_of_a_relayed_process_do_not_change_its_session(revision: str, own: str) -> None:
    mcp = Server("front")
    mcp.upstream("shared", [sys.executable, "-c", REMEMBERS, own], prefix="", start_timeout=WAIT, timeout=WAIT)
    async with asyncio.timeout(WAIT), AsyncExitStack() as stack:
        await stack.enter_async_context(mcp.running())
        server = await stack.enter_async_context(serve(mcp))
        url = f"http://127.0.0.1:{server.port}/{'sse' if revision == '2024-11-05' else 'mcp'}"
        ada, eve = [await stack.enter_async_context(Client(url, revision=revision, timeout=WAIT)) for _ in range(2)]
        changes = await stack.enter_async_context(ada.watch("doc://1"))
        async with eve.watch("doc://1"):
            pass  # Eve unsubscribes
        await eve.set_log_level("emergency")
        for _ in range(3):
            assert (await ada.call("touch")).text != "emergency"
            async for change in changes:
                assert change.uri == "doc://1"
                break


@pytest.mark.server
@pytest.mark.parametrize("prefix", ["", "far"], ids=["relay", "catalog"])
async def test_subscription_at_a_shared_process_without_subscriptions_is_refused(prefix: str) -> None:
    command = [sys.executable, "-c", REMEMBERS.replace('"subscribe": True', '"subscribe": False'), "2025-11-25"]
    mcp = Server("front")
    mcp.upstream("far", command, prefix=prefix, start_timeout=WAIT, timeout=WAIT)
    mcp.resource("here://1", name="here")(lambda: "1")
    async with asyncio.timeout(WAIT), Client(mcp, revision="2025-11-25", timeout=WAIT) as client:
        uri = "doc://far/1" if prefix else "doc://1"
        with pytest.raises(ServerError, match="has no subscriptions") as refused:
            await client.request("resources/subscribe", {"uri": uri})
        assert refused.value.code == -32601
        await client.request("resources/subscribe", {"uri": "here://1"})


BOTH_ERAS = r"""
import json, sys
SDK_ERROR, watched, streams = sys.argv[1], set(), {}
CAPABILITIES = {"tools": {}, "resources": {"subscribe": True}}
ABOUT = {"capabilities": CAPABILITIES, "serverInfo": {"name": "both", "version": "1"}}
FORM = {"type": "object", "properties": {"name": {"type": "string"}}}

def say(**message):
    print(json.dumps({"jsonrpc": "2.0", **message}), flush=True)

sessions, asking = False, None
for line in sys.stdin:
    message = json.loads(line)
    method, params, result = message.get("method"), message.get("params", {}), {}
    if method == "server/discover":
        result = {**ABOUT, "supportedVersions": ["2026-07-28"]}
    elif method == "initialize":
        sessions, result = True, {**ABOUT, "protocolVersion": "2025-11-25"}
    elif method == "tools/list":
        result["tools"] = [{"name": name, "inputSchema": {"type": "object"}} for name in ("ask", "touch")]
    elif method == "resources/list":
        result["resources"] = [{"uri": "doc://1", "name": "one"}]
    elif method == "resources/subscribe":
        watched.add(params["uri"])
    elif method == "subscriptions/listen":
        filters = params["notifications"]
        streams[message["id"]] = filters.get("resourceSubscriptions", [])
        meta = {"io.modelcontextprotocol/subscriptionId": message["id"]}
        say(method="notifications/subscriptions/acknowledged", params={"notifications": filters, "_meta": meta})
        continue
    elif method == "tools/call" and params["name"] == "touch":
        if "doc://1" in watched:
            say(method="notifications/resources/updated", params={"uri": "doc://1"})
        for number, uris in streams.items():
            meta = {"io.modelcontextprotocol/subscriptionId": number}
            if "doc://1" in uris:
                say(method="notifications/resources/updated", params={"uri": "doc://1", "_meta": meta})
        result["content"] = []
    elif method == "tools/call" and sessions:
        asking = message["id"]
        say(id="q", method="elicitation/create", params={"message": "Who?", "requestedSchema": FORM})
        continue
    elif method == "tools/call":
        result = {"content": [{"type": "text", "text": SDK_ERROR}], "isError": True}
    elif message.get("id") == "q":
        say(id=asking, result={"content": [{"type": "text", "text": "asked"}]})
        continue
    if "id" in message:
        say(id=message["id"], result={"resultType": "complete", **result})
"""
"""A server of both eras, whose tool `ask` can ask only in sessions, and whose tool `touch` changes its resource."""


@pytest.mark.server
@pytest.mark.parametrize("prefix", ["", "far"], ids=["relay", "catalog"])
@pytest.mark.parametrize("revision", [HANDSHAKE, PER_REQUEST])
async def test_updates_arrive_after_a_process_has_changed_its_era(revision: str, prefix: str) -> None:
    mcp = Server("front")
    command = [sys.executable, "-c", BOTH_ERAS, SDK_ERROR]
    mcp.upstream("far", command, prefix=prefix, start_timeout=WAIT, timeout=WAIT)
    name, uri = f"{prefix}_" if prefix else "", f"doc://{prefix}/1" if prefix else "doc://1"
    async with asyncio.timeout(WAIT), mcp.running(), serve(mcp) as running:
        client = Client(
            f"http://127.0.0.1:{running.port}/mcp", revision=revision, elicit=lambda _: {"name": "Ada"}, timeout=WAIT
        )
        async with client, client.watch(uri) as changes:
            await client.call(f"{name}touch")
            assert (await anext(changes)).uri == uri
            assert "Call again." in (await client.call(f"{name}ask", raise_on_error=False)).text
            assert (await client.call(f"{name}ask")).text == "asked"
            updates = asyncio.create_task(anext(changes))
            while not updates.done():  # the subscription is made again in the background
                await client.call(f"{name}touch")
                await asyncio.sleep(0.01)
            assert updates.result().uri in (uri, "")
