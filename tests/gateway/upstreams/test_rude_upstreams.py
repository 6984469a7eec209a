import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from itertools import count
from typing import Any

import pytest
from websockets.asyncio.server import ServerConnection
from websockets.asyncio.server import serve as serve_websocket
from websockets.exceptions import ConnectionClosed
from websockets.typing import Subprotocol

from cases import for_each
from client.misbehaving_servers import ReceivedRequest, misbehaving
from fleet import until
from http_peer import RunningServer, serve
from millstream import Context, Server, Settings, SyncContext, auth
from millstream.client import Client, Options, Question, ServerError
from millstream.gateway import UpstreamPolicy
from patience import WAIT, advance_clock
from wire import ask_asgi, encode_headers, per_request, routing

Json = dict[str, Any]
Say = Callable[[Json], Awaitable[None]]

TOOLS = [{"name": "go", "inputSchema": {"type": "object"}}, {"name": "rest", "inputSchema": {"type": "object"}}]
TASKS: Json = {"io.modelcontextprotocol/tasks": {}}
DONE: Json = {"content": [{"type": "text", "text": "done"}]}
FORM: Json = {"message": "Well?", "requestedSchema": {"type": "object", "properties": {"x": {"type": "integer"}}}}
PER_REQUEST, HANDSHAKE, OLDER = "2026-07-28", "2025-11-25", "2025-06-18"
ALICE, BOB = "alice-has-a-key-of-some-length", "bob-has-another-of-some-length"


def greet(method: str, revision: str, extensions: Json | None = None) -> Json:
    """Return the result of a request that isn't a tool call."""
    capabilities: Json = {"tools": {}, "logging": {}, "extensions": extensions or {}}
    if method == "initialize":
        about = {"name": "rude", "version": "1"}
        return {"protocolVersion": revision, "capabilities": capabilities, "serverInfo": about}
    if method == "tools/list":
        return {"resultType": "complete", "tools": TOOLS}
    if method == "server/discover":
        return {"resultType": "complete", "supportedVersions": [revision], "capabilities": capabilities}
    return {"resultType": "complete"}


@asynccontextmanager
async def run_http_upstream(
    call: Callable[[ReceivedRequest], Awaitable[None]],
    revision: str = HANDSHAKE,
    answers: list[Json] | None = None,
    *,
    handshake: bool = True,
    has_sessions: bool = True,
    extensions: Json | None = None,
    seen: list[Json] | None = None,
) -> AsyncIterator[str]:
    """Run an upstream on Streamable HTTP with one session per handshake."""
    session_revision = HANDSHAKE if revision == PER_REQUEST else revision
    sessions = iter(range(1, 1000))

    async def behave(asked: ReceivedRequest) -> None:
        message = asked.message
        if seen is not None:
            seen.append(message)
        if asked.verb != "POST":
            await asked.reply(b"", status="405 Method Not Allowed")
        elif "method" not in message:
            if answers is not None:
                answers.append(message)
            await asked.reply(b"", status="202 Accepted")
        elif "id" not in message:
            await asked.reply(b"", status="202 Accepted")
        elif message["method"] in ("tools/call", "tasks/get"):
            await call(asked)
        elif message["method"] == "initialize" and not handshake:
            await asked.error(-32601, "Method not found", status="404 Not Found")
        else:
            first = message["method"] == "initialize"
            more = f"Mcp-Session-Id: s{next(sessions)}\r\n" if first and has_sessions else ""
            found = greet(message["method"], session_revision if first else revision, extensions)
            await asked.result(found, more=more)

    async with misbehaving(behave) as server:
        yield server.url


@asynccontextmanager
async def run_websocket_upstream(
    call: Callable[[Json, Say, "Wire"], Awaitable[None]], revision: str = HANDSHAKE
) -> AsyncIterator[tuple[str, "Wire"]]:
    """Run an upstream on a WebSocket, where messages don't name their call."""
    wire = Wire()

    async def behave(socket: ServerConnection) -> None:
        tasks: set[asyncio.Task[None]] = set()

        async def say(message: Json) -> None:
            await socket.send(json.dumps({"jsonrpc": "2.0", **message}))

        try:
            async for data in socket:
                message = json.loads(data)
                if message.get("method") == "tools/call":
                    tasks.add(asyncio.create_task(call(message, say, wire)))
                elif "method" in message and "id" in message:
                    await say({"id": message["id"], "result": greet(message["method"], revision)})
                else:
                    wire.messages.append(message)
                    wire.arrival.set()
        except ConnectionClosed:
            pass
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async with serve_websocket(behave, "127.0.0.1", 0, subprotocols=[Subprotocol("mcp")]) as server:
        yield f"ws://127.0.0.1:{next(iter(server.sockets)).getsockname()[1]}/", wire


class Wire:
    """The notifications and responses that an upstream has received."""

    def __init__(self) -> None:
        self.messages: list[Json] = []
        self.arrival = asyncio.Event()

    async def answer(self, question: str) -> Json:
        """Wait for the answer to a question."""
        while True:
            for message in self.messages:
                if message.get("id") == question:
                    return message
            self.arrival.clear()
            await self.arrival.wait()


def make_gateway(url: str, revision: str | None = HANDSHAKE, **options: Any) -> Server:
    settings = Settings(secret_key="a secret of the tests that is long enough", **options.pop("settings", {}))
    mcp = Server("front", settings=settings, auth=options.pop("auth", None))
    mcp.upstream("rude", url, prefix="", revision=revision, start_timeout=WAIT, timeout=WAIT, **options)
    return mcp


def texts(result: Json) -> str:
    return str(result["content"][0]["text"])


async def request(client: Client, tool: str = "go", **options: Any) -> Json:
    return await client.request("tools/call", {"name": tool, "arguments": {}}, **options)


class Person:
    """Answers forms and records them."""

    def __init__(self) -> None:
        self.questions: list[Question] = []

    def __call__(self, question: Question) -> Any:
        self.questions.append(question)
        return True if question.mode == "url" else {"x": 1}


ODD_QUESTIONS: list[tuple[str, str, Json, int]] = [
    ("sampling/createMessage", "sampling that no client declared", {"messages": [], "maxTokens": 1}, -32601),
    ("roots/list", "roots that no client declared", {}, -32601),
    ("tasks/list", "a method that no client has", {}, -32601),
    ("elicitation/create", "a URL that runs a script", {"mode": "url", "message": "m", "url": "javascript:0"}, -32602),
    ("elicitation/create", "a mode that doesn't exist", {"mode": "odd", "message": "m"}, -32602),
    ("elicitation/create", "a mode that isn't a text", {"mode": [1], "message": "m"}, -32602),
    ("elicitation/create", "a form without fields", {"message": "m"}, -32602),
    ("elicitation/create", "a form that isn't one", {"message": "m", "requestedSchema": [1]}, -32602),
    ("elicitation/create", "a form of two megabytes", {**FORM, "message": "m" * 2_000_000}, -32602),
]


@pytest.mark.parametrize("revision", [HANDSHAKE, PER_REQUEST])
async def test_undeclared_questions_do_not_reach_the_client(revision: str) -> None:
    answers: list[Json] = []

    async def call(asked: ReceivedRequest) -> None:
        await asked.stream()
        for number, (method, _, params, _) in enumerate(ODD_QUESTIONS):
            await asked.say(method, params, id=f"odd{number}")
        await until(lambda: len(answers) == len(ODD_QUESTIONS))
        await asked.event(asked.answer(DONE))
        await asked.end()

    person = Person()
    async with (
        asyncio.timeout(WAIT),
        run_http_upstream(call, answers=answers) as url,
        Client(make_gateway(url), revision=revision, elicit=person) as client,
    ):
        assert texts(await request(client)) == "done"
    assert person.questions == []
    codes = {each["id"]: each["error"]["code"] for each in answers}
    assert codes == {f"odd{number}": code for number, (_, _, _, code) in enumerate(ODD_QUESTIONS)}


CARD = "4111-1111-1111-1111"
SECRETS = UpstreamPolicy(redact_results=(r"\b(?:\d-?){16}\b",))


class Recorder:
    """A client's user and model, who record everything that reaches them."""

    def __init__(self) -> None:
        self.heard: list[Any] = []

    def client(self, mcp: Server, revision: str) -> Client:
        options = Options(log_level="info") if revision == PER_REQUEST else Options()
        return Client(
            mcp, revision=revision, elicit=self.fill, sample=self.say, on_log=self.hear, options=options, timeout=WAIT
        )

    def hear(self, log: Any) -> None:
        self.heard.append(("log", log.data))

    def progress(self, value: float, total: float | None, message: str | None) -> None:
        self.heard.append(("progress", message))

    def fill(self, question: Question) -> Any:
        self.heard.append(("form", question.message, question.requested_schema))
        return {"x": 1}

    def say(self, params: Any) -> str:
        self.heard.append(("sampling", params.system_prompt, str(params.messages)))
        return "hello"


FORM_WITH_CARD: Json = {
    "message": f"Charge {CARD}?",
    "requestedSchema": {"type": "object", "properties": {"x": {"type": "integer", "title": CARD}}},
}
SAMPLE_WITH_CARD: Json = {
    "messages": [{"role": "user", "content": {"type": "text", "text": CARD}}],
    "systemPrompt": CARD,
    "maxTokens": 5,
}


async def test_redaction_covers_every_message_in_a_call() -> None:
    pytest.importorskip("re2")
    result: Json = {**DONE, "structuredContent": {CARD: 1, "paid": {CARD: 2}}, "resultType": "complete"}
    questions = {"elicitation/create": FORM_WITH_CARD, "sampling/createMessage": SAMPLE_WITH_CARD}

    async def say(asked: ReceivedRequest) -> None:
        await asked.stream()
        log = {"level": "error", "data": {CARD: [CARD]}}
        step = {"progressToken": asked.message["params"]["_meta"]["progressToken"], "progress": 1, "message": CARD}
        for method, params in (("notifications/message", log), ("notifications/progress", step)):
            await asked.say(method, params)

    async def handshake(asked: ReceivedRequest) -> None:
        await say(asked)
        for method, params in questions.items():
            await asked.say(method, params, id=f"{method} {asked.message['id']}")
        await until(lambda: len(answers) == 2)
        answers.clear()
        await asked.event(asked.answer(result))
        await asked.end()

    async def per_request(asked: ReceivedRequest) -> None:
        await say(asked)
        wanted = {method: {"method": method, "params": params} for method, params in questions.items()}
        first = "inputResponses" not in asked.message["params"]
        more = {"resultType": "input_required", "inputRequests": wanted}
        await asked.event(asked.answer(more if first else result))
        await asked.end()

    for up, call in ((HANDSHAKE, handshake), (PER_REQUEST, per_request)):
        answers: list[Json] = []
        async with asyncio.timeout(WAIT), run_http_upstream(call, up, answers) as url:
            mcp = make_gateway(url, up, policy=SECRETS)
            async with mcp.running():
                for down in (HANDSHAKE, PER_REQUEST):
                    person = Recorder()
                    async with person.client(mcp, down) as client:
                        found = await request(client, progress=person.progress)
                    assert "4111" not in str((person.heard, found)), (up, down)
                    assert found["structuredContent"] == {"[redacted]": 1, "paid": {"[redacted]": 2}}
                    assert ("log", {"[redacted]": ["[redacted]"]}) in person.heard
                    assert ("progress", "[redacted]") in person.heard
                    kinds = {each[0]: each[1:] for each in person.heard}
                    assert kinds["form"][0] == "Charge [redacted]?"
                    assert kinds["sampling"][0] == "[redacted]"


async def test_redaction_covers_upstream_task_status() -> None:
    pytest.importorskip("re2")
    polls = count()
    task: Json = {"taskId": "t", "status": "working", "statusMessage": CARD, "pollIntervalMs": 1}

    async def call(asked: ReceivedRequest) -> None:
        if asked.message["method"] == "tools/call":
            await asked.result({"resultType": "task", **task})
        else:
            over = {"status": "completed", "result": DONE} if next(polls) % 2 else {}
            await asked.result({"resultType": "complete", **task, **over})

    async with asyncio.timeout(WAIT), run_http_upstream(call, PER_REQUEST, extensions=TASKS) as url:
        mcp = make_gateway(url, PER_REQUEST, policy=SECRETS)
        async with mcp.running():
            for down in (HANDSHAKE, PER_REQUEST):
                person = Recorder()
                async with person.client(mcp, down) as client:
                    assert texts(await request(client, progress=person.progress)) == "done"
                assert ("progress", "[redacted]") in person.heard, down


async def test_policy_can_reject_types_of_questions() -> None:
    codes: list[int] = []

    async def call(asked: ReceivedRequest) -> None:
        await asked.stream()
        for number, method in enumerate(("elicitation/create", "sampling/createMessage", "roots/list")):
            params = {"elicitation/create": FORM, "sampling/createMessage": {"messages": [], "maxTokens": 1}}
            await asked.say(method, params.get(method, {}), id=number)
        await until(lambda: len(answers) == 3)
        codes[:] = [each.get("error", {}).get("code", 0) for each in sorted(answers, key=lambda each: each["id"])]
        answers.clear()
        await asked.event(asked.answer(DONE))
        await asked.end()

    answers: list[Json] = []
    seen: list[Json] = []
    policy = UpstreamPolicy(questions=("elicitation",), shared=UpstreamPolicy(questions=("elicitation", "roots")))
    async with asyncio.timeout(WAIT), run_http_upstream(call, answers=answers, seen=seen) as url:
        mcp = make_gateway(url, policy=policy)
        async with mcp.running():
            for down in (HANDSHAKE, PER_REQUEST):
                person = Person()
                async with Client(
                    mcp, revision=down, elicit=person, sample=lambda _: "", roots=["file:///"], timeout=WAIT
                ) as client:
                    assert texts(await request(client)) == "done"
                assert (codes, len(person.questions)) == ([0, -32601, -32601], 1), down
    declared = [each["params"]["capabilities"] for each in seen if each.get("method") == "initialize"]
    # The connection that reads the lists declares no more than the policy allows, either.
    assert declared == [{"elicitation": {"form": {}, "url": {}}}] * len(declared)


async def test_upstream_receives_client_capabilities_in_its_revision() -> None:
    ui = {"io.modelcontextprotocol/ui": {"mimeTypes": ["text/html;profile=mcp-app"]}}
    everything: Json = {
        "elicitation": {"form": {}, "url": {}},
        "sampling": {"tools": {}, "context": {}},
        "roots": {"listChanged": True},
        "extensions": {**ui, "io.modelcontextprotocol/tasks": {}, "example.com/odd": {"a": 1}},
        "experimental": {"odd": {}},
        "tasks": {"list": {}},
    }
    passed: Json = {
        "elicitation": {"form": {}, "url": {}},
        "sampling": {"tools": {}, "context": {}},
        "roots": {},
        "extensions": ui,
    }
    own: Json = {**everything, "extensions": ui}  # of the client's own session
    expected: dict[str, dict[str, Json]] = {  # upstream -> client
        OLDER: {OLDER: own, HANDSHAKE: own},
        HANDSHAKE: {"2024-11-05": own, OLDER: own, HANDSHAKE: own, PER_REQUEST: passed},
        PER_REQUEST: {
            OLDER: {"elicitation": {"form": {}}, "sampling": {}, "roots": {}, "extensions": ui},
            PER_REQUEST: passed,
        },
    }
    seen: list[Json] = []

    async def call(asked: ReceivedRequest) -> None:
        await asked.result({**DONE, "resultType": "complete"})

    for up, clients in expected.items():
        async with asyncio.timeout(WAIT), run_http_upstream(call, up, seen=seen) as url:
            mcp = make_gateway(url, up)
            async with mcp.running():
                for down, declared in clients.items():
                    seen.clear()
                    async with Client(mcp, revision=down, options=Options(extra_capabilities=everything)) as client:
                        await request(client)
                    if up == PER_REQUEST:
                        [message] = [each for each in seen if each.get("method") == "tools/call"]
                        found = message["params"]["_meta"]["io.modelcontextprotocol/clientCapabilities"]
                    else:
                        greetings = [each["params"] for each in seen if each.get("method") == "initialize"]
                        found = greetings[-1]["capabilities"]
                    assert found == declared, (up, down)


async def test_undeclared_input_requests_are_errors() -> None:
    results: list[Json] = [
        {"inputRequests": {"a": {"method": "roots/list", "params": {}}}},
        {"inputRequests": {"a": {"method": "elicitation/create", "params": {"mode": "url", "url": "data:x"}}}},
        {"inputRequests": {str(n): {"method": "elicitation/create", "params": FORM} for n in range(500)}},
        {"inputRequests": {"a": 5}},
        {"requestState": 7},
        {"resultType": "task", "taskId": "1"},
        {},
    ]
    current: list[Json] = []

    async def call(asked: ReceivedRequest) -> None:
        await asked.result({"resultType": "input_required", **current[0]})

    person = Person()
    async with asyncio.timeout(WAIT), run_http_upstream(call, PER_REQUEST) as url:
        mcp = make_gateway(url, PER_REQUEST)
        async with mcp.running():
            for revision in (PER_REQUEST, HANDSHAKE):
                async with Client(mcp, revision=revision, elicit=person) as client:
                    for result in results:
                        current[:] = [result]
                        assert (await request(client))["isError"], result
    assert person.questions == []


async def test_endless_questions_end_with_an_error() -> None:
    async def call(asked: ReceivedRequest) -> None:
        question = {"method": "elicitation/create", "params": FORM}
        await asked.result({"resultType": "input_required", "inputRequests": {"a": question}, "requestState": "s"})

    person = Person()
    async with asyncio.timeout(WAIT), run_http_upstream(call, PER_REQUEST) as url:
        mcp = make_gateway(url, PER_REQUEST, settings={"max_rounds": 3})
        async with mcp.running():
            async with Client(mcp, revision=HANDSHAKE, elicit=person) as client:
                assert (await request(client))["isError"]
            assert len(person.questions) == 3
            async with Client(mcp, revision=PER_REQUEST, elicit=person) as client:
                with pytest.raises(ServerError, match="Stopped after 3 rounds"):
                    await request(client)
            assert len(person.questions) == 6


@pytest.mark.parametrize("revision", [HANDSHAKE, PER_REQUEST])
async def test_message_floods_do_not_delay_the_result(revision: str) -> None:
    async def call(asked: ReceivedRequest) -> None:
        await asked.stream()
        for number in range(3_000):
            log = {"level": "error", "data": number}
            token = asked.message["params"]["_meta"]["progressToken"]
            for method, params in (
                ("notifications/message", log),
                ("notifications/progress", {"progressToken": token, "progress": number}),
                ("notifications/message", {"level": "nonsense"}),
                ("notifications/progress", {"progressToken": "another's", "progress": 1}),
                ("notifications/nonsense", {}),
            ):
                await asked.say(method, params)
        await asked.event(asked.answer(DONE))
        await asked.end()

    steps: list[float] = []
    async with (
        asyncio.timeout(WAIT),
        run_http_upstream(call) as url,
        Client(make_gateway(url), revision=revision) as client,
    ):
        result = await request(client, progress=lambda progress, total, message: steps.append(progress))
        assert texts(result) == "done"
    assert steps == sorted(steps)
    assert len(steps) <= 3_000


async def test_messages_that_belong_to_no_request_do_not_affect_calls() -> None:
    started = asyncio.Event()
    lies: list[Json] = [
        {"id": 10**6, "result": DONE},
        {"id": "x", "result": DONE},
        {"id": [1], "result": DONE},
        {"nonsense": True},
        {"id": None, "error": {"code": -32700, "message": "Parse error"}},
    ]

    async def call(message: Json, say: Say, wire: Wire) -> None:
        if message["params"]["name"] == "rest":
            await started.wait()
            for each in lies:
                await say(each)
        for _ in range(2):  # the same response twice
            await say({"id": message["id"], "result": DONE})
        started.set()

    async with (
        asyncio.timeout(WAIT),
        run_websocket_upstream(call) as (url, _),
        Client(make_gateway(url, isolation="shared")) as client,
    ):
        results = await asyncio.gather(request(client, "rest"), *(request(client) for _ in range(3)))
        assert [texts(each) for each in (*results, await request(client))] == ["done"] * 5


@pytest.mark.parametrize("revision", [HANDSHAKE, PER_REQUEST])
async def test_ambiguous_questions_are_asked_only_within_a_session(
    revision: str, caplog: pytest.LogCaptureFixture
) -> None:
    answers: list[Json] = []
    answered = asyncio.Event()
    running: list[Json] = []

    async def call(message: Json, say: Say, wire: Wire) -> None:
        running.append(message)
        if len(running) == 2:
            await say({"method": "notifications/message", "params": {"level": "error", "data": "whose?"}})
            await say({"id": "q1", "method": "elicitation/create", "params": FORM})
            answers.append(await wire.answer("q1"))
            answered.set()
        await answered.wait()
        if len(running) == 3:  # alone
            await say({"method": "notifications/message", "params": {"level": "error", "data": "mine"}})
        await say({"id": message["id"], "result": DONE})
        if len(running) == 3:
            await say({"id": "late", "method": "elicitation/create", "params": FORM})

    one = revision == HANDSHAKE
    person, logs = Person(), list[Any]()
    async with (
        asyncio.timeout(WAIT),
        run_websocket_upstream(call) as (url, wire),
        Client(
            make_gateway(url, isolation="shared"),
            revision=revision,
            elicit=person if one else None,
            on_log=lambda log: logs.append(log.data),
            options=Options(log_level="" if one else "info"),
        ) as client,
    ):
        ends = await asyncio.gather(request(client), request(client))
        assert [texts(each) for each in ends] == ["done", "done"]
        assert texts(await request(client)) == "done"
        late = await wire.answer("late")
    assert logs == ["whose?", "mine"]  # one client made both calls
    assert len(person.questions) == 2 * one
    assert "result" in late if one else late["error"]["code"] == -32600  # a session is asked outside its calls
    if one:
        assert answers[0]["result"]["content"] == {"x": 1}
    else:
        assert answers[0]["error"]["code"] == -32600
        assert "doesn't identify one of them" in caplog.text


async def test_session_questions_survive_other_calls() -> None:
    asked = asyncio.Event()

    async def call(message: Json, say: Say, wire: Wire) -> None:
        if message["params"]["name"] == "rest":
            await asked.wait()
        else:
            await say({"id": "q", "method": "elicitation/create", "params": FORM})
            assert (await wire.answer("q"))["result"]["content"] == {"x": 1}
        await say({"id": message["id"], "result": DONE})

    times: list[Question] = []

    async def person(question: Question) -> Json:
        times.append(question)
        asked.set()
        if len(times) == 1:
            await asyncio.Event().wait()  # the question is withdrawn when its call ends
        return {"x": 1}

    async with (
        asyncio.timeout(WAIT),
        run_websocket_upstream(call) as (url, _),
        Client(make_gateway(url), revision=HANDSHAKE, elicit=person) as client,
    ):
        ends = await asyncio.gather(request(client, "rest"), request(client))
        assert [texts(each) for each in ends] == ["done", "done"]
    assert len(times) == 2


async def test_sessionless_calls_do_not_share_questions() -> None:
    numbers = count()

    async def call(message: Json, say: Say, wire: Wire) -> None:
        question = f"q{next(numbers)}"
        await say({"id": question, "method": "elicitation/create", "params": FORM})
        assert (await wire.answer(question))["result"]["content"] == {"x": 1}
        await say({"id": message["id"], "result": DONE})

    person = Person()
    async with asyncio.timeout(WAIT), run_websocket_upstream(call) as (url, _):
        mcp = make_gateway(url)
        async with mcp.running(), Client(mcp, revision=PER_REQUEST, elicit=person) as client:
            ends = await asyncio.gather(*(request(client) for _ in range(4)))
            assert [texts(each) for each in ends] == ["done"] * 4
    assert len(person.questions) == 4


@pytest.mark.parametrize("revision", [HANDSHAKE, PER_REQUEST])
async def test_upstreams_can_withdraw_questions(revision: str) -> None:
    withdrawn = asyncio.Event()

    async def call(message: Json, say: Say, wire: Wire) -> None:
        await say({"id": "q", "method": "elicitation/create", "params": FORM})
        await asked.wait()
        await say({"method": "notifications/cancelled", "params": {"requestId": "q"}})
        await say({"id": message["id"], "result": DONE})

    asked = asyncio.Event()

    async def person(question: Question) -> Json:
        asked.set()
        if revision == HANDSHAKE:
            try:
                await asyncio.Event().wait()
            finally:
                withdrawn.set()
        return {"x": 1}

    async with (
        asyncio.timeout(WAIT),
        run_websocket_upstream(call) as (url, _),
        Client(make_gateway(url), revision=revision, elicit=person) as client,
    ):
        assert texts(await request(client)) == "done"
        if revision == HANDSHAKE:
            await withdrawn.wait()


async def test_completed_urls_are_announced_to_the_asked_client() -> None:
    told: list[Json] = []

    async def call(message: Json, say: Say, wire: Wire) -> None:
        url = {"mode": "url", "message": "Pay", "url": "https://example.com/pay", "elicitationId": "e7"}
        await say({"id": "q", "method": "elicitation/create", "params": url})
        assert (await wire.answer("q"))["result"]["action"] == "accept"
        for each in ("another", "e7"):
            await say({"method": "notifications/elicitation/complete", "params": {"elicitationId": each}})
        await say({"id": message["id"], "result": DONE})

    async with (
        asyncio.timeout(WAIT),
        run_websocket_upstream(call) as (url, _),
        Client(make_gateway(url), revision=HANDSHAKE, elicit=Person()) as client,
    ):
        client.conversation.requests.incoming.observer = lambda each: told.append(json.loads(bytes(each.params)))
        assert texts(await request(client)) == "done"
    assert told == [{"elicitationId": "e7"}]


async def test_completed_url_that_another_worker_issued_is_announced_on_the_stream_of_the_call() -> None:
    told: list[Json] = []

    async def call(asked: ReceivedRequest) -> None:
        await asked.stream()
        await asked.say("notifications/elicitation/complete", {"elicitationId": "elsewhere"})
        await asked.event(asked.answer(DONE))
        await asked.end()

    async with (
        asyncio.timeout(WAIT), run_http_upstream(call) as url, Client(make_gateway(url), revision=HANDSHAKE) as client
    ):  # fmt: skip
        client.conversation.requests.incoming.observer = lambda each: told.append(json.loads(bytes(each.params)))
        assert texts(await request(client)) == "done"
    assert told == [{"elicitationId": "elsewhere"}]


async def ask_to_sign_in(asked: ReceivedRequest) -> None:
    wanted = {"mode": "url", "message": "Sign in", "url": "https://example.com/in", "elicitationId": "e1"}
    await asked.error(-32042, "Sign in first.", {"elicitations": [wanted]})


async def test_url_elicitation_errors_reach_every_revision() -> None:
    opened: list[str] = []

    async def call(asked: ReceivedRequest) -> None:
        await (asked.result(DONE) if opened else ask_to_sign_in(asked))

    def person(question: Question) -> Any:
        opened.append(question.url or "")
        return True

    async with asyncio.timeout(WAIT), run_http_upstream(call) as url:
        mcp = make_gateway(url)
        async with mcp.running():
            async with Client(mcp, revision=HANDSHAKE, elicit=person) as client:
                with pytest.raises(ServerError) as caught:
                    await request(client)
                assert caught.value.code == -32042
                (wanted,) = caught.value.data["elicitations"]
                assert (wanted["elicitationId"], wanted["message"]) == ("e1", "Sign in")
            for revision in (OLDER, PER_REQUEST):
                async with Client(mcp, revision=revision) as client:  # this client can't be asked
                    result = await request(client)
                    assert result["isError"]
                    assert "https://example.com/in" in texts(result)
            async with Client(mcp, revision=PER_REQUEST, elicit=lambda question: "decline") as client:
                assert "declined" in texts(await request(client))
            assert opened == []
            async with Client(mcp, revision=PER_REQUEST, elicit=person) as client:
                assert texts(await request(client)) == "done"
            assert opened == ["https://example.com/in"]


async def test_policy_rejects_urls_in_errors() -> None:
    policy = UpstreamPolicy(questions=("sampling", "roots"))
    async with asyncio.timeout(WAIT), run_http_upstream(ask_to_sign_in) as url:
        mcp = make_gateway(url, policy=policy)
        async with mcp.running():
            for revision in (HANDSHAKE, PER_REQUEST):
                async with Client(mcp, revision=revision, elicit=Person(), timeout=WAIT) as client:
                    result = await request(client)
                    assert (result["isError"], texts(result)) == (True, "Sign in first.")


async def test_upstream_errors_have_the_status_for_their_code() -> None:
    errors: dict[int, tuple[int, int]] = {  # code of the upstream -> code and status for the client
        -32021: (-32021, 400),
        -32020: (-32603, 200),  # these two are about the gateway's own request
        -32022: (-32603, 200),
        -32603: (-32603, 200),
        0: (0, 200),
    }
    data = {"requiredCapabilities": {"sampling": {}}}

    async def call(asked: ReceivedRequest) -> None:
        await asked.error(code, "Not so.", data)

    async with asyncio.timeout(WAIT), run_http_upstream(call, PER_REQUEST) as url:
        mcp = make_gateway(url, PER_REQUEST)
        async with mcp.running():
            message = json.dumps(per_request("tools/call", {"name": "go", "arguments": {}})).encode()
            fields = encode_headers(routing("tools/call", "go"))
            for code, expected in errors.items():
                reply = await ask_asgi(mcp, "POST", "/mcp", fields, message)
                error = reply.message["error"]
                assert ((error["code"], reply.status), error["message"]) == (expected, "Not so.")
                assert (error.get("data") == data) is (error["code"] == code)


def connect(running: RunningServer, key: str, revision: str, **options: Any) -> Client:
    """Return a client with a key."""
    headers = {"authorization": f"Bearer {key}"}
    return Client(f"http://127.0.0.1:{running.port}/mcp", revision=revision, headers=headers, **options)


async def test_principals_do_not_share_sessions_or_questions() -> None:
    sessions: dict[str, str] = {}
    answers: list[Json] = []

    async def call(asked: ReceivedRequest) -> None:
        who = asked.message["params"]["name"]
        sessions[who] = asked.headers["mcp-session-id"]
        await asked.stream()
        await asked.say("elicitation/create", {**FORM, "message": who}, id=f"q{who}")
        await until(lambda: any(each["id"] == f"q{who}" for each in answers))
        await asked.event(asked.answer(DONE))
        await asked.end()

    guard = auth.keys(named_keys={"alice": ALICE, "bob": BOB})
    async with asyncio.timeout(WAIT), run_http_upstream(call, answers=answers) as url:
        mcp = make_gateway(url, auth=guard)
        async with mcp.running(), serve(mcp) as running:
            for revision in (HANDSHAKE, PER_REQUEST):
                sessions.clear()
                people = {"go": (ALICE, Person()), "rest": (BOB, Person())}
                async with AsyncExitStack() as stack:
                    calls: list[Awaitable[Json]] = []
                    for tool, (key, person) in people.items():
                        client = connect(running, key, revision, elicit=person)
                        calls.append(request(await stack.enter_async_context(client), tool))
                    for result in await asyncio.gather(*calls):
                        assert texts(result) == "done"
                for tool, (_, person) in people.items():
                    assert [each.message for each in person.questions] == [tool]
                assert sessions["go"] != sessions["rest"]
                answers.clear()


async def test_principals_do_not_share_websockets() -> None:
    began = asyncio.Event()

    async def call(message: Json, say: Say, wire: Wire) -> None:
        if message["params"]["name"] == "go":
            await began.wait()
            await say({"method": "notifications/message", "params": {"level": "error", "data": "secret"}})
            wire.arrival.set()
        else:
            began.set()
            await wire.arrival.wait()
        await say({"id": message["id"], "result": {**DONE, "resultType": "complete"}})

    logs: list[Any] = []
    guard = auth.keys(named_keys={"alice": ALICE, "bob": BOB})
    async with asyncio.timeout(WAIT), run_websocket_upstream(call, PER_REQUEST) as (url, _):
        mcp = make_gateway(url, PER_REQUEST, auth=guard)
        async with mcp.running(), serve(mcp) as running, AsyncExitStack() as stack:
            alice = await stack.enter_async_context(connect(running, ALICE, PER_REQUEST))
            listening: Any = {"on_log": logs.append, "options": Options(log_level="info")}
            bob = await stack.enter_async_context(connect(running, BOB, PER_REQUEST, **listening))
            ends = await asyncio.gather(request(alice), request(bob, "rest"))
            assert [texts(each) for each in ends] == ["done", "done"]
    assert logs == []


async def test_callers_evict_only_their_own_connections() -> None:
    sessions: list[str] = []

    async def call(asked: ReceivedRequest) -> None:
        sessions.append(asked.headers["mcp-session-id"])
        await asked.result(DONE)

    guard = auth.keys(named_keys={"alice": ALICE, "bob": BOB})
    async with asyncio.timeout(WAIT), run_http_upstream(call) as url:
        mcp = make_gateway(url, auth=guard, max_connections=6)
        async with mcp.running(), serve(mcp) as running, AsyncExitStack() as stack:
            bob = await stack.enter_async_context(connect(running, BOB, HANDSHAKE))
            await request(bob)
            for _ in range(12):
                await request(await stack.enter_async_context(connect(running, ALICE, HANDSHAKE)))
            await request(bob)
    assert sessions[-1] == sessions[0]
    assert len(set(sessions)) == 13


@pytest.mark.parametrize(("up", "down"), [(HANDSHAKE, HANDSHAKE), (HANDSHAKE, PER_REQUEST), (PER_REQUEST, HANDSHAKE)])
async def test_timeouts_pause_during_questions(up: str, down: str) -> None:
    there = Server("there")

    @there.tool
    async def asks(ctx: Context) -> str:
        return str((await ctx.elicit("Well?", FORM["requestedSchema"]))["x"])

    async def person(question: Question) -> Json:
        advance_clock(WAIT / 2)
        await asyncio.sleep(0.01)  # timers that are due have run
        return {"x": 1}

    mcp = Server("front")
    mcp.upstream("there", there, prefix="", revision=up, start_timeout=WAIT, timeout=WAIT / 4)
    async with asyncio.timeout(WAIT), Client(mcp, revision=down, elicit=person) as client:
        assert texts(await request(client, "asks")) == "1"


async def test_dual_era_upstream_uses_the_clients_era() -> None:
    there = Server("there")

    @there.tool
    def which(ctx: SyncContext) -> list[str]:
        return [ctx.revision]

    mcp = Server("front")
    mcp.upstream("there", there, prefix="", start_timeout=WAIT)
    async with asyncio.timeout(WAIT), mcp.running():
        for revision, elicit, expected in (
            (HANDSHAKE, Person(), HANDSHAKE),
            (OLDER, Person(), OLDER),
            (HANDSHAKE, None, HANDSHAKE),
            (PER_REQUEST, Person(), PER_REQUEST),
        ):
            async with Client(mcp, revision=revision, elicit=elicit) as client:
                result = await request(client, "which")
                value = [expected] if revision == PER_REQUEST else {"result": [expected]}
                assert result["structuredContent"] == value, (revision, expected)


async def test_upstream_with_tasks_and_both_eras_can_ask_handshake_clients() -> None:
    answers: list[Json] = []

    async def call(asked: ReceivedRequest) -> None:
        message = asked.message
        session = "mcp-session-id" in asked.headers
        if message["method"] == "tasks/get":
            await asked.result({"resultType": "complete", "taskId": "t", "status": "completed", "result": DONE})
        elif message["params"]["name"] == "rest" and session:  # as the Rust SDK refuses it
            await asked.error(-32021, "No.", {"requiredCapabilities": {"extensions": TASKS}})
        elif message["params"]["name"] == "rest":
            await asked.result({"resultType": "task", "taskId": "t", "status": "working"})
        elif session:
            await asked.stream()
            await asked.say("elicitation/create", FORM, id="q")
            await until(lambda: answers)
            assert answers.pop()["result"]["content"] == {"x": 1}
            await asked.event(asked.answer(DONE))
            await asked.end()
        else:
            await asked.result({"content": [], "isError": True, "resultType": "complete"})

    person = Person()
    async with (
        asyncio.timeout(WAIT),
        run_http_upstream(call, PER_REQUEST, answers, extensions=TASKS) as url,
        Client(make_gateway(url, None), revision=HANDSHAKE, elicit=person, timeout=WAIT) as client,
    ):
        for tool in ("go", "rest", "rest"):
            assert texts(await request(client, tool)) == "done"
    assert len(person.questions) == 1


@for_each("missing", ["handshake", "has_sessions"])  # the HTTP server of the TypeScript SDK has no sessions
async def test_per_request_upstream_serves_both_eras(missing: str) -> None:
    async def call(asked: ReceivedRequest) -> None:
        if "inputResponses" in asked.message["params"]:
            await asked.result(DONE)
            return
        question = {"method": "elicitation/create", "params": FORM}
        await asked.result({"resultType": "input_required", "inputRequests": {"a": question}})

    async with asyncio.timeout(WAIT), run_http_upstream(call, PER_REQUEST, **{missing: False}) as url:
        mcp = make_gateway(url, None)
        async with mcp.running():
            for revision in (HANDSHAKE, PER_REQUEST, HANDSHAKE):
                person = Person()
                async with Client(mcp, revision=revision, elicit=person) as client:
                    assert texts(await request(client)) == "done"
                assert len(person.questions) == 1
