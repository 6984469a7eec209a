"""One tenant uses up a shared resource, and a second tenant is still served.

To add a case, write an async function that builds the real thing, and add it to the table at the end. Each returns a
`Shared`: `hold` takes one more for a tenant and keeps it, `use` is a complete operation of a tenant that needs some of
it, and `error` matches what the first tenant reads once it can't hold more. Both return the error of the operation, or
an empty string. Whatever must end with the test goes on the exit stack.
"""

import asyncio
import json
import re
import socket
import sys
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from itertools import cycle
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Event, Semaphore
from typing import Any, NamedTuple
from unittest.mock import patch

import pytest

from client.misbehaving_servers import DONE, ReceivedRequest, misbehaving, with_discovery
from fleet import until
from http_peer import Peer, RunningServer, serve
from millstream import Client, Context, Server, Settings, SyncContext, auth
from millstream.client import ClientError, Question, ServerError
from millstream.gateway import UpstreamPolicy
from patience import WAIT
from wire import Json, encode_headers, encode_request, per_request, routing


class Tenant(NamedTuple):
    """A principal at an address of its own."""

    name: str
    key: str
    address: str

    @property
    def headers(self) -> dict[str, str]:
        """Headers with its credentials."""
        return {"authorization": f"Bearer {self.key}"}


ALICE = Tenant("alice", "alice-has-a-key-of-some-length", "127.0.0.2")
BOB = Tenant("bob", "bob-has-another-of-some-length", "127.0.0.3")
CAROL = Tenant("carol", "carol-has-a-third-one-of-some-length", "127.0.0.4")
MANY = 200
"""Far more than one tenant may hold of anything in these cases."""
HANDSHAKE, PER_REQUEST = "2025-11-25", "2026-07-28"
FORM: Json = {"type": "object", "properties": {"x": {"type": "integer"}}}
WORKER = r"""
import json, os, sys
for line in sys.stdin:
    message = json.loads(line)
    result = {"protocolVersion": "2025-06-18", "capabilities": {"tools": {}}, "serverInfo": {"name": "worker"}}
    if message["method"] == "tools/list":
        result = {"tools": [{"name": "work", "inputSchema": {"type": "object"}}]}
    elif message["method"] == "tools/call":
        result = {"content": [{"type": "text", "text": "worked"}]}
        if message["params"]["arguments"]["wait"]:
            open(os.path.join(sys.argv[1], str(os.getpid())), "w").close()
            continue
    if "id" in message:
        print(json.dumps({"jsonrpc": "2.0", "id": message["id"], "result": result}), flush=True)
"""

Operation = Callable[[Tenant], Awaitable[str]]
Case = Callable[[AsyncExitStack], Awaitable["Shared"]]


class Shared(NamedTuple):
    """Something that both tenants use."""

    hold: Operation
    use: Operation
    error: str


def make_server(**settings: Any) -> Server:
    """Return a server with the tenants."""
    guard = auth.keys(named_keys={each.name: each.key for each in (ALICE, BOB, CAROL)})
    return Server(
        "front", auth=guard, settings=Settings(secret_key="a secret of the tests that is long enough", **settings)
    )


async def run(stack: AsyncExitStack, mcp: Server) -> RunningServer:
    """Serve until the test ends."""
    await stack.enter_async_context(mcp.running())
    return await stack.enter_async_context(serve(mcp))


async def connect(stack: AsyncExitStack, running: RunningServer, tenant: Tenant, **options: Any) -> Client:
    """Return a tenant's client, with a session in the handshake era."""
    url = f"http://127.0.0.1:{running.port}/mcp"
    return await stack.enter_async_context(Client(url, headers=tenant.headers, timeout=WAIT, **options))


async def send(
    stack: AsyncExitStack,
    running: RunningServer,
    tenant: Tenant,
    method: str,
    params: Json,
    *,
    missing: int = 0,
    unread: bool = False,
) -> tuple[Peer, bytes]:
    """POST a request of the per-request era from the tenant's address, without its last `missing` bytes.

    With `unread`, the kernel buffers little of the reply.

    Returns:
        The connection, and the missing bytes.
    """
    sock = socket.socket()
    if unread:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.bind((tenant.address, 0))  # all of 127.0.0.0/8 is this machine
    sock.connect(("127.0.0.1", running.port))
    sock.setblocking(False)
    peer = Peer(*await asyncio.open_connection(sock=sock))
    stack.callback(peer.close)
    headers = {**routing(method, params.get("name", "")), **tenant.headers}
    body = json.dumps(per_request(method, params, elicitation={"form": {}})).encode()
    data = encode_request("POST", "/mcp", encode_headers(headers), body)
    end = len(data) - missing
    await peer.send(data[:end])
    return peer, data[end:]


async def parked_calls(stack: AsyncExitStack) -> Shared:
    """Calls waiting for an answer at an upstream of the handshake era."""
    there = Server("there")

    @there.tool
    async def ask(ctx: Context, note: str) -> str:
        return str((await ctx.elicit("Well?", FORM))["x"])

    mcp = make_server(max_pending_inputs=6)
    mcp.upstream("there", there, prefix="", revision=HANDSHAKE, start_timeout=WAIT, timeout=WAIT)
    running = await run(stack, mcp)

    async def post(tenant: Tenant, **more: Any) -> Json:
        params = {"name": "ask", "arguments": {"note": "x"}, **more}
        peer, _ = await send(stack, running, tenant, "tools/call", params)
        return dict(json.loads((await peer.reply())[2])["result"])

    async def hold(tenant: Tenant) -> str:
        result = await post(tenant)
        return "" if result["resultType"] == "input_required" else str(result["content"][0]["text"])

    async def use(tenant: Tenant) -> str:
        asked = await post(tenant)
        if asked["resultType"] != "input_required":
            return str(asked["content"][0]["text"])
        answers = {each: {"action": "accept", "content": {"x": 7}} for each in asked["inputRequests"]}
        result = await post(tenant, inputResponses=answers, requestState=asked["requestState"])
        return "" if result["content"][0]["text"] == "7" else str(result)

    return Shared(hold, use, "Too many questions are open, 3 of them yours")


def add_work(mcp: Server) -> list[str]:
    """Add a tool that can wait until the test ends. Returns an entry for each call that waits."""
    started: list[str] = []

    @mcp.tool
    async def work(wait: bool, text: str = "") -> str:
        if wait:
            started.append("")
            await asyncio.Event().wait()
        return "worked"

    return started


async def calls(stack: AsyncExitStack) -> Shared:
    """Running calls."""
    mcp = make_server(max_calls=8)
    started = add_work(mcp)
    return make_calls(stack, await run(stack, mcp), ["work"], lambda: len(started), "Too many calls are running")


async def call_bytes(stack: AsyncExitStack) -> Shared:
    """Arguments of large calls that are running."""
    mcp = make_server(max_call_bytes=200_000, max_body=100_000)
    started = add_work(mcp)
    running = await run(stack, mcp)
    return make_calls(stack, running, ["work"], lambda: len(started), "Too many calls are running", text="x" * 40_000)


async def questions(stack: AsyncExitStack) -> Shared:
    """Questions to handshake clients."""
    mcp, asked = make_server(max_pending_inputs=6), list[str]()

    @mcp.tool
    async def ask(ctx: Context, wait: bool) -> str:
        return str((await ctx.elicit(f"Well? {wait}", FORM))["x"])

    async def answer(question: Question) -> Json:
        if question.message.endswith("True"):
            asked.append("")
            await asyncio.Event().wait()
        return {"x": 7}

    running = await run(stack, mcp)
    return make_calls(
        stack, running, ["ask"], lambda: len(asked), "Too many questions are open, 3 of them yours", elicit=answer
    )


async def streams(stack: AsyncExitStack) -> Shared:
    """Subscriptions of the per-request era."""
    mcp = make_server(max_streams=8)
    add_work(mcp)
    running = await run(stack, mcp)

    async def use(tenant: Tenant) -> str:
        filters = {"notifications": {"toolsListChanged": True}}
        peer, _ = await send(stack, running, tenant, "subscriptions/listen", filters)
        status, headers = await peer.head()
        if status == 200:
            return ""
        return (await peer.reader.readexactly(int(headers[b"content-length"]))).decode()

    return Shared(use, use, "Too many open streams")


def make_calls(
    stack: AsyncExitStack,
    running: RunningServer,
    tools: list[str],
    count_started: Callable[[], int],
    error: str,
    *,
    elicit: Any = None,
    revision: str = HANDSHAKE,
    **arguments: Any,
) -> Shared:
    """Return a case of tool calls, each in a session of its own, that can wait until the test ends."""
    turns = cycle(tools)

    async def call(tenant: Tenant, tool: str, *, wait: bool) -> str:
        try:
            client = await connect(stack, running, tenant, revision=revision, elicit=elicit)
            result = await client.call(tool, wait=wait, **arguments, raise_on_error=False)
        except ServerError as exc:
            return exc.message
        return result.text if result.is_error else ""

    def start(tenant: Tenant, tool: str, *, wait: bool) -> asyncio.Task[str]:
        task = asyncio.create_task(call(tenant, tool, wait=wait))
        stack.callback(task.cancel)
        return task

    async def hold(tenant: Tenant) -> str:
        before, task = count_started(), start(tenant, next(turns), wait=True)
        await until(lambda: task.done() or count_started() > before)
        return task.result() if task.done() else ""

    async def use(tenant: Tenant) -> str:
        return await start(tenant, tools[0], wait=False)

    return Shared(hold, use, error)


async def http_calls(stack: AsyncExitStack) -> Shared:
    """HTTP connections to an upstream of the per-request era, which all callers share."""
    there, mcp = Server("there"), make_server()
    started, running = add_work(there), await run(stack, there)
    url = f"http://127.0.0.1:{running.port}/mcp"
    mcp.upstream("there", url, start_timeout=WAIT, timeout=WAIT, max_connections=8)
    error = r"busy, not down: you're using \d of its 8 connections"
    running = await run(stack, mcp)
    return make_calls(stack, running, ["there_work"], lambda: len(started), error, revision=PER_REQUEST)


async def api_calls(stack: AsyncExitStack) -> Shared:
    """HTTP connections to an API, which all callers share."""
    there, mcp = Server("there", serve="rest"), make_server()
    started, running = add_work(there), await run(stack, there)
    document = f"http://127.0.0.1:{running.port}/openapi.json"
    mcp.upstream("there", openapi=document, prefix="", start_timeout=WAIT, max_connections=8)
    error = r"busy, not down: you're using \d of its 8 connections"
    running = await run(stack, mcp)
    return make_calls(stack, running, ["work"], lambda: len(started), error)


async def failures(stack: AsyncExitStack) -> Shared:
    """The circuit breaker of an upstream."""

    async def behave(asked: ReceivedRequest) -> None:
        if asked.method != "tools/call":
            tools = [{"name": "work", "inputSchema": {"type": "object"}}]
            await asked.result({"resultType": "complete", "tools": tools, "resources": [], "resourceTemplates": []})
        elif asked.message["params"]["arguments"]["wait"]:
            raise ConnectionError
        else:
            await asked.result(DONE)

    mcp = make_server()
    server = await stack.enter_async_context(misbehaving(with_discovery(behave)))
    mcp.upstream("there", server.url, prefix="", start_timeout=WAIT, timeout=WAIT)
    calls = make_calls(stack, await run(stack, mcp), ["work"], int, "failed your last 5 calls to 'work'")

    async def hold(tenant: Tenant) -> str:
        error = await calls.hold(tenant)
        return "" if "closed the connection during the call" in error else error

    return calls._replace(hold=hold)


async def threads(stack: AsyncExitStack) -> Shared:
    """Threads of plain functions."""
    mcp, started, end = make_server(max_threads=8), list[str](), Event()
    stack.callback(end.set)

    @mcp.tool
    def work(wait: bool) -> str:
        if wait:
            started.append("")
            end.wait(WAIT)
        return "worked"

    error = r"worker threads are busy: your calls use \d of 8"
    return make_calls(stack, await run(stack, mcp), ["work"], lambda: len(started), error)


async def processes(stack: AsyncExitStack) -> Shared:
    """Processes of a command with one for each session of its callers. One more reads its lists."""
    mcp = make_server()
    return await make_process_calls(stack, mcp, ["there"], r"busy, not down: you're using \d of its 8 processes")


async def processes_of_the_gateway(stack: AsyncExitStack) -> Shared:
    """Processes of all commands. The first two read lists."""
    mcp = make_server(max_processes=8)
    error = r"busy, not down: you're using \d of this gateway's 8 processes"
    return await make_process_calls(stack, mcp, ["there", "elsewhere"], error)


async def make_process_calls(stack: AsyncExitStack, mcp: Server, names: list[str], error: str) -> Shared:
    """Return a case of calls to commands, in processes that record the start of a call as a file."""
    started = Path(stack.enter_context(TemporaryDirectory()))
    command = [sys.executable, "-I", "-S", "-c", WORKER, str(started)]
    for name in names:
        mcp.upstream(name, command, isolation="per_session", max_processes=8, start_timeout=WAIT, timeout=WAIT)
    running = await run(stack, mcp)
    tools = [f"{name}_work" for name in names]
    return make_calls(stack, running, tools, lambda: len(list(started.iterdir())), error)


async def connections(stack: AsyncExitStack) -> Shared:
    """Connections to the server, which belong to an address."""
    stack.enter_context(patch("millstream._http.server.guard.is_loopback", lambda host: False))
    running = await run(stack, make_server(max_connections=8))

    async def use(tenant: Tenant) -> str:
        peer, _ = await send(stack, running, tenant, "server/discover", {})
        status, _, text = await peer.reply()
        return "" if status == 200 else text.decode()

    return Shared(use, use, "There are too many connections from your address")


async def request_bytes(stack: AsyncExitStack) -> Shared:
    """Bodies of requests in arrival, which belong to an address."""
    running = await run(stack, make_server(max_incoming_bytes=40_000, max_body=20_000))
    budget = running.guard.unfinished

    async def begin(tenant: Tenant) -> tuple[Peer, bytes, asyncio.Task[Any]]:
        before = budget.used
        peer, rest = await send(stack, running, tenant, "server/discover", {"note": "x" * 8_000}, missing=1)
        reply = asyncio.create_task(peer.reply())
        stack.callback(reply.cancel)
        await until(lambda: reply.done() or budget.used > before)
        return peer, rest, reply

    async def hold(tenant: Tenant) -> str:
        _, _, reply = await begin(tenant)
        return reply.result()[2].decode() if reply.done() else ""

    async def use(tenant: Tenant) -> str:
        peer, rest, reply = await begin(tenant)
        await peer.send(rest)
        status, _, text = await reply
        return "" if status == 200 else text.decode()

    return Shared(hold, use, "too much data")


def watches(*, relayed: bool) -> Case:
    """Return the case of watched resources of an upstream, which serves most subscriptions itself if it's relayed."""

    async def watches(stack: AsyncExitStack) -> Shared:
        there = Server("there")

        @there.resource("item://{owner}/{number}")
        async def item(owner: str, number: int) -> str:
            return ""

        @there.tool
        async def touch(uri: str) -> None:
            await there.resource_updated(uri)

        mcp = make_server()
        mcp.upstream("there", there, prefix="", start_timeout=WAIT, timeout=WAIT)
        if not relayed:
            mcp.resource("own://item", name="own")(lambda: "")
        running = await run(stack, mcp)
        count = 0

        async def hold(tenant: Tenant) -> str:
            nonlocal count
            count += 50
            client = await connect(stack, running, tenant, revision=PER_REQUEST)
            uris = [f"item://{tenant.name}/{number}" for number in range(count, count + 50)]
            try:
                await stack.enter_async_context(client.watch(*uris))
            except ClientError as error:
                return str(error)
            return ""

        async def use(tenant: Tenant) -> str:
            client = await connect(stack, running, tenant, revision=PER_REQUEST)
            uri = f"item://{tenant.name}/{count + 1}"
            async with client.watch(uri) as changes:
                await client.call("touch", uri=uri)
                async for change in changes:
                    if change.uri == uri:
                        return ""
            return "no update"

        return Shared(hold, use, "You're watching 500 resources on 'there'. The maximum is 500, or fewer")

    watches.__name__ += "-relayed" if relayed else ""
    return watches


async def stored_results(stack: AsyncExitStack) -> Shared:
    """Results too large for their callers, which they read as resources."""
    there = Server("there")

    @there.tool
    async def large() -> str:
        return "x" * 2**20

    mcp = make_server()
    policy = UpstreamPolicy(result_bytes=1_000)
    mcp.upstream("there", there, prefix="", policy=policy, start_timeout=WAIT, timeout=WAIT)
    running = await run(stack, mcp)
    clients, first = dict[str, Client](), dict[str, str]()

    async def use(tenant: Tenant) -> str:
        client = clients[tenant.name] = clients.get(tenant.name) or await connect(stack, running, tenant)
        uri = (await client.call("large")).text.rpartition(" ")[2]
        try:
            await client.read(first.setdefault(tenant.name, uri))
        except ClientError as error:
            return str(error)
        return ""

    return Shared(use, use, "not found")


async def unread_replies(stack: AsyncExitStack) -> Shared:
    """Replies that callers behind one address don't read."""
    mcp, size = make_server(max_outgoing_bytes=60_000_000), 5_000_000

    @mcp.tool
    async def large() -> str:
        return "x" * size

    running = await run(stack, mcp)
    state, unread = running.state, running.guard.unsent

    async def post(tenant: Tenant) -> Peer:
        before, cut = unread.count(tenant.name), state.cut
        tenant = tenant._replace(address="127.0.0.4")
        peer, _ = await send(stack, running, tenant, "tools/call", {"name": "large", "arguments": {}}, unread=True)
        await until(lambda: state.cut > cut or unread.count(tenant.name) >= before + size)
        return peer

    waiting = {BOB.name: await post(BOB)}

    async def hold(tenant: Tenant) -> str:
        await post(tenant)
        return "cut" if state.cut else ""

    async def use(tenant: Tenant) -> str:
        status, _, text = await (waiting.get(tenant.name) or await post(tenant)).reply()
        return "" if status == 200 else text.decode()

    return Shared(hold, use, "cut")


def arriving_replies(kind: str) -> Case:
    """Return the case of an upstream's replies that arrive slowly, as JSON or as an event stream."""

    async def arriving_replies(stack: AsyncExitStack) -> Shared:
        arrived, size = 0, 100_000

        async def behave(asked: ReceivedRequest) -> None:
            nonlocal arrived
            if asked.method != "tools/call":
                tools = [{"name": "work", "inputSchema": {"type": "object"}}]
                await asked.result({"resultType": "complete", "tools": tools, "resources": [], "resourceTemplates": []})
                return
            reply = asked.answer({**DONE, "content": [{"type": "text", "text": "x" * size}]})
            reply = reply if kind == "application/json" else b"data: %b\n\n" % reply
            head = f"HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nContent-Length: {len(reply)}\r\n\r\n"
            await asked.write(head.encode() + reply[:size])
            if asked.message["params"]["arguments"]["wait"]:
                arrived += 1
                await asyncio.get_running_loop().create_future()
            await asked.write(reply[size:])

        mcp = make_server(max_incoming_bytes=1_600_000)
        server = await stack.enter_async_context(misbehaving(with_discovery(behave)))
        mcp.upstream("there", server.url, prefix="", max_bytes=200_000, start_timeout=WAIT, timeout=WAIT)
        error = r"sending too much data at once: your unfinished replies use [\d,]+ of 400,000 bytes"
        return make_calls(stack, await run(stack, mcp), ["work"], lambda: arrived, error)

    arriving_replies.__name__ += f"-{kind}"
    return arriving_replies


CASES: list[Any] = [
    calls,
    call_bytes,
    connections,
    request_bytes,
    threads,
    streams,
    questions,
    parked_calls,
    http_calls,
    api_calls,
    failures,
    pytest.param(processes, marks=pytest.mark.server),
    pytest.param(processes_of_the_gateway, marks=pytest.mark.server),
    watches(relayed=False),
    watches(relayed=True),
    stored_results,
    unread_replies,
    arriving_replies("application/json"),
    arriving_replies("text/event-stream"),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
async def test_second_tenant_is_not_affected_by_the_first(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("millstream._server.pool.WAIT_TIMEOUT", 0.0)  # who has to wait is refused
    async with asyncio.timeout(WAIT), AsyncExitStack() as stack:
        shared = await case(stack)
        error, held = "", 0
        while not error and held < MANY:
            error = await shared.hold(ALICE)
            held += 1
        assert re.search(shared.error, error), error
        assert held > 1
        assert not await shared.use(BOB)


async def test_second_tenant_gets_the_next_free_thread_despite_a_long_queue() -> None:
    mcp, started, finish = make_server(max_threads=1), list[str](), Semaphore(0)

    @mcp.tool
    def work(ctx: SyncContext) -> str:
        assert ctx.principal is not None
        started.append(ctx.principal.subject)
        finish.acquire(timeout=WAIT)
        return "worked"

    async with asyncio.timeout(WAIT), AsyncExitStack() as stack:
        runtime = await stack.enter_async_context(mcp.running())
        running, waiting = await stack.enter_async_context(serve(mcp)), runtime.services.threads.places.waiting
        clients = [await connect(stack, running, ALICE) for _ in range(3)]  # a client has up to 100 connections
        bob = await connect(stack, running, BOB)
        calls = [asyncio.create_task(each.call("work")) for each in clients for _ in range(90)]
        await until(lambda: waiting.used == 269)
        calls.append(asyncio.create_task(bob.call("work")))
        await until(lambda: waiting.used == 270)
        finish.release(2)  # equal owners take turns
        await until(lambda: len(started) == 3)
        finish.release(269)
        await asyncio.gather(*calls)
    assert "bob" in started[:3]
