"""The hub's clients: `/hub.js` in Node.js, and `millstream.hub.connect`. The same cases test both.

tests/pages/test_hub_client_in_pages.py has the first one in a browser.
"""

import asyncio
import json
import random
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest
from websockets.asyncio.server import ServerConnection, serve

from faulty_proxy import faulty_proxy
from patience import WAIT
from processes import NODE, ROOT, SharedServer, free_port, run_command, run_server, share_server
from proxies import NEEDS_HAPROXY, NEEDS_NGINX, haproxy, nginx_site

pytestmark = pytest.mark.server

SCRIPT = Path(__file__).with_name("listen.mjs")
HUB = "examples/hub.py"
PYTHON = ("python", "blocking", "python-websocket", "blocking-websocket")
TRANSPORTS = ("websocket", "sse", *PYTHON)
"""The transports of `/hub.js`, and the two faces of the client in Python with theirs."""


class Listener:
    """A program with the client."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self.lines: list[list[Any]] = []

    async def line(self) -> list[Any]:
        """Return the next line."""
        assert self._process.stdout is not None
        try:
            text = await asyncio.wait_for(self._process.stdout.readline(), WAIT)
        except TimeoutError:
            raise AssertionError(f"nothing was printed after {self.lines}") from None
        assert text, f"the program ended: {self.lines}"
        try:
            found = json.loads(text)
        except ValueError:
            found = ["printed", text.decode()]
        self.lines.append(found)
        return list(found)

    async def until(self, *wanted: Any) -> list[Any]:
        """Read lines until one begins with these values."""
        while (found := await self.line())[: len(wanted)] != list(wanted):
            pass
        return found

    def values(self, name: str) -> list[Any]:
        """Return the second value of all lines so far that begin with a name."""
        return [each[1] for each in self.lines if each[0] == name]

    def call(self, method: str, *values: Any) -> None:
        """Call a method of the client."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps([method, *values]).encode() + b"\n")


@asynccontextmanager
async def listening(
    port: int, patterns: dict[str, dict[str, Any]], path: str = "", **options: Any
) -> AsyncIterator[Listener]:
    """Run a client during the block, in Node.js or in Python."""
    in_python = options.get("transport") in PYTHON
    program = [sys.executable, str(SCRIPT.with_suffix(".py"))] if in_python else [NODE, "--no-warnings", str(SCRIPT)]
    arguments = f"http://127.0.0.1:{port}{path}", json.dumps(options), json.dumps([*patterns.items()])
    process = await asyncio.create_subprocess_exec(*program, *arguments, stdin=PIPE, stdout=PIPE)
    try:
        yield Listener(process)
    finally:
        process.kill()
        await process.wait()


async def publish(port: int, channel: str, *texts: str, key: str = "") -> None:
    """Publish texts with the REST route."""
    headers = {"authorization": f"Bearer {key}"} if key else {}
    async with httpx2.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=WAIT, headers=headers) as http:
        for text in texts:
            assert (await http.post("/publish", json={"channel": channel, "data": text})).status_code == 200


@pytest.fixture(scope="module")
def shared_hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SharedServer]:
    with share_server(lambda port: run_command(HUB, port), tmp_path_factory.mktemp("hub")) as server:
        yield server


@pytest.fixture
def hub(shared_hub: SharedServer) -> int:
    return shared_hub.port()


@pytest.fixture(scope="module")
def small_hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """A hub with room for one subscriber of each channel."""
    port, log = free_port(), tmp_path_factory.mktemp("small") / "log"
    with run_server(run_command(HUB, port), port, log, MILLSTREAM_HUB_SUBSCRIBERS_PER_CHANNEL="1"):
        yield port


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_each_subscription_gets_its_own_history_and_every_event_once(hub: int, transport: str) -> None:
    room = f"overlap-{transport}"
    await publish(hub, f"{room}.a", "1", "2")
    patterns = {f"{room}.>": {"history": 9, "name": "all"}, f"{room}.*": {"history": 1, "name": "level"}}
    async with listening(hub, patterns, transport=transport) as listener:
        await listener.until("ready")
        await listener.until("ready")
        await publish(hub, f"{room}.a", "3")
        await listener.until("all", "3")
        # The same pattern, when the others have had its events already.
        listener.call("follow", f"{room}.a", {"history": 9, "name": "late"})
        listener.call("follow", f"{room}.a", {"history": 9, "name": "again"})
        await listener.until("again", "3")
        await publish(hub, f"{room}.a", "4")
        for name in ("all", "level", "late", "again"):
            while "4" not in listener.values(name):
                await listener.line()
        assert listener.values("all") == listener.values("late") == listener.values("again") == ["1", "2", "3", "4"]
        assert listener.values("level") == ["2", "3", "4"]
        assert listener.values("gap") == []


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_subscription_without_events_resumes_where_it_began(hub: int, transport: str) -> None:
    """The events published during the first disconnection aren't taken for history."""
    room = f"quiet-{transport}"
    await publish(hub, room, "old")
    with faulty_proxy(hub) as proxy:
        async with listening(proxy.port, {room: {}}, transport=transport) as listener:
            await listener.until("ready")
            proxy.down = True
            proxy.cut()
            while (await listener.until("state"))[1].get("status") != 502:
                pass
            await publish(hub, room, "missed", "too")
            proxy.down = False
            assert (await listener.until("ready"))[1]["resumed"] is True
            await publish(hub, room, "new")
            await listener.until(room, "new")
            assert listener.values(room) == ["missed", "too", "new"]
            assert listener.values("gap") == []


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_connections_that_break_anywhere_lose_and_repeat_nothing(hub: int, transport: str) -> None:
    """Connections break after a random number of bytes: in a head, a frame, a replay, or between two subscriptions."""
    chance = random.Random(0)
    room = f"broken-{transport}"
    texts = [str(number) for number in range(80)]
    patterns = {
        f"{room}.>": {"history": 500, "name": "all"},
        f"{room}.a": {"history": 500, "name": "a"},
        f"{room}.b": {"history": 500, "name": "b"},
    }
    await publish(hub, f"{room}.a", *texts[:40])
    with faulty_proxy(hub, lambda: chance.randrange(400, 3_000)) as proxy:
        async with listening(proxy.port, patterns, transport=transport, impatient=True) as listener:
            await listener.until("a", "39")
            async with httpx2.AsyncClient(base_url=f"http://127.0.0.1:{hub}", timeout=WAIT) as http:
                for number in range(40, 80):
                    await http.post("/publish", json={"channel": f"{room}.{'ab'[number % 2]}", "data": str(number)})
            expected = {"a": texts[:40] + texts[40::2], "b": texts[41::2], "all": texts}
            while any(len(listener.values(name)) < len(each) for name, each in expected.items()):
                await listener.line()
            assert {name: listener.values(name) for name in expected} == expected
            assert listener.values("gap") == []
            assert proxy.connections > 3


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_subscription_resumes_from_its_position_whatever_publishers_chose_as_ids(
    hub: int, transport: str
) -> None:
    """Two events have the same id, because they're about the same order."""
    orders, room = f"orders-{transport}", f"room-{transport}"
    patterns = {f"{orders}.*": {}, room: {}}
    with faulty_proxy(hub) as proxy:
        async with (
            httpx2.AsyncClient(base_url=f"http://127.0.0.1:{hub}", timeout=WAIT) as http,
            listening(proxy.port, patterns, transport=transport) as listener,
        ):
            await listener.until("ready")
            await listener.until("ready")
            await http.post("/publish", json={"channel": f"{orders}.created", "data": "1", "id": orders})
            await listener.until(f"{orders}.*", "1")
            proxy.down = True
            proxy.cut()
            await publish(hub, f"{orders}.noted", "2")
            await http.post("/publish", json={"channel": f"{orders}.paid", "data": "3", "id": orders})
            proxy.down = False
            await listener.until(f"{orders}.*", "3")
            assert listener.values(f"{orders}.*") == ["1", "2", "3"]
            assert listener.values("gap") == []


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_subscription_waits_while_the_caller_is_over_its_rate(tmp_path: Path, transport: str) -> None:
    port, patterns = free_port(), {f"news{number}": {} for number in range(11)}
    with run_server(run_command(HUB, port), port, tmp_path / "log", MILLSTREAM_LIMIT_REQUESTS="10/minute"):
        async with listening(port, patterns, transport=transport) as listener:
            while len(listener.values("ready")) < len(patterns):
                await listener.line()
            reasons = [each["reason"] for each in listener.values("state") if each["state"] == "waiting"]
            assert any(each.startswith("Too many requests") for each in reasons)
            assert listener.values("error") == []


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_lists_of_channels_are_refused(hub: int, transport: str) -> None:
    """The server would take them for several channels."""
    async with listening(hub, {"news": {}}, transport=transport) as listener:
        await listener.until("ready")
        listener.call("subscribe", "news,orders")
        assert await listener.line() == [
            "failed",
            {"name": "ValueError", "message": "Pass each channel as a separate argument."}
            if transport in PYTHON
            else {"name": "TypeError", "message": "Subscribe to each channel separately."},
        ]


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_subscription_that_follows_a_closed_one_gets_its_own_history(hub: int, transport: str) -> None:
    room = f"again-{transport}"
    await publish(hub, room, "1")
    async with listening(hub, {room: {"history": 9, "name": "first"}}, transport=transport) as listener:
        while not (listener.values("ready") and listener.values("first")):
            await listener.line()
        for name in ("second", "third"):
            listener.call("unfollow", 0)
            listener.call("follow", room, {"history": 9, "name": name})
            await listener.until("ready")
        await publish(hub, room, "2")
        await listener.until("third", "2")
        assert [listener.values(name) for name in ("first", "third")] == [["1"], ["1", "2"]]
        assert listener.values("second") in (["1"], ["1", "2"])


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_refused_requests_do_not_disturb_other_subscriptions(hub: int, transport: str) -> None:
    room = f"allowed-{transport}"
    async with listening(hub, {"$client.eve": {}, "a..b": {}, room: {}}, transport=transport) as listener:
        while len(listener.values("error")) < 2 or not listener.values("ready"):
            await listener.line()
        assert {each["pattern"] for each in listener.values("error")} == {"$client.eve", "a..b"}
        listener.call("publish", "$client.eve", "Hello")
        assert (await listener.until("failed"))[1]["name"] == "Refused"
        listener.call("publish", room, {"text": "Hello"}, {"event": "said", "id": f"own-{transport}"})
        listener.call("publish", room, {"text": "Hello"}, {"event": "said", "id": f"own-{transport}"})
        await listener.until("publish", {"id": f"own-{transport}", "subscribers": 0})  # a repeated one
        listener.call("publish", room, "end")
        await listener.until(room, "end")
        assert [each[1:] for each in listener.lines if each[0] == room] == [['{"text":"Hello"}', "said"], ["end"]]


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_events_that_the_server_cannot_read_are_refused(hub: int, transport: str) -> None:
    room = f"readable-{transport}"
    async with listening(hub, {room: {}}, transport=transport) as listener:
        await listener.until("ready")
        for data in ("\ud83d", {"\udc00": 1}, "x" * 2**21):
            listener.call("publish", room, data)
            assert (await listener.until("failed"))[1]["name"] == "Refused"
        listener.call("publish", room, r"an escape, \ud83d, and a face, 😀")
        await listener.until(room, r"an escape, \ud83d, and a face, 😀")
        assert "waiting" not in [each["state"] for each in listener.values("state")]


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_subscription_closed_twice_leaves_the_next_one_alone(hub: int, transport: str) -> None:
    room = f"twice-{transport}"
    async with listening(hub, {room: {"name": "first"}}, transport=transport) as listener:
        await listener.until("ready")
        for step in ("follow", "publish"):
            listener.call("unfollow", 0)
            listener.call("members", room)  # the reply comes after the end of the subscription
            await listener.until("members")
            listener.call(step, room, {"name": "second"} if step == "follow" else "Hello")
            await listener.until(*(["ready"] if step == "follow" else ["second", "Hello"]))


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_subscriptions_wait_until_the_hub_has_room(small_hub: int, transport: str) -> None:
    room, other = f"full-{transport}", f"free-{transport}"
    async with listening(small_hub, {room: {}}, transport=transport) as first:
        await first.until("ready")
        async with listening(small_hub, {other: {}, room: {}}, transport=transport, impatient=True) as second:
            while (await second.until("state"))[1]["state"] != "waiting":
                pass
            if transport == "websocket":
                assert second.values("state")[-1]["reason"] == "Too many subscribers (channel: 1). Try again later."
            second.call("publish", other, "still here")
            await second.until(other, "still here")
            first.call("unfollow", 0)
            await second.until("ready", {"pattern": room, "resumed": False})
            while second.values("state")[-1]["state"] != "open":
                await second.line()
            second.call("publish", room, "Hello")
            await second.until(room, "Hello")
            assert second.values("error") == []


async def test_gap_belongs_to_the_subscription_after_a_refused_one() -> None:
    async def respond(socket: ServerConnection) -> None:
        await socket.send('{"type":"connected","client_id":"a"}')
        refused, started = [json.loads(await socket.recv())["id"] for _ in range(2)]
        error = {"code": -32003, "message": "Forbidden."}
        async with socket.send_context():  # in one packet
            for message in (
                {"type": "error", "id": refused, "error": error},
                {"type": "gap", "reason": "trimmed"},
                {"type": "subscribed", "id": started, "channel": "second"},
            ):
                socket.protocol.send_text(json.dumps(message).encode())
        await socket.wait_closed()

    async with serve(respond, "127.0.0.1", 0, compression=None) as server:
        port = server.sockets[0].getsockname()[1]
        async with listening(port, {"first": {}, "second": {}}) as listener:
            await listener.until("ready")
            assert listener.values("gap") == [{"pattern": "second", "reason": "trimmed"}]
            await listener.until("error", {"pattern": "first", "message": "Forbidden."})


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_gaps_are_reported_before_the_events_that_remain(hub: int, transport: str) -> None:
    room = f"gap-{transport}"
    await publish(hub, room, "1", "2")
    async with listening(hub, {room: {"from": "long-ago"}}, transport=transport) as listener:
        await listener.until("gap", {"pattern": room, "reason": "unknown"})
        assert listener.values(room) == []
        await listener.until(room, "2")
        assert listener.values(room) == ["1", "2"]


@pytest.mark.parametrize("transport", ["sse", *PYTHON])
async def test_token_is_renewed_for_each_connection(tmp_path: Path, transport: str) -> None:
    port, key = free_port(), "key-of-the-hub-0123"
    with run_server(run_command(HUB, port, "--auth", key), port, tmp_path / "log"):
        async with listening(
            port, {"news": {}}, transport=transport, token=f"expired-key-of-the-hub {key}"
        ) as listener:
            while (await listener.until("state"))[1].get("status") != 403:
                pass
            await listener.until("ready")
            listener.call("publish", "news", "Hello")
            await listener.until("news", "Hello")
        async with listening(port, {"news": {}}, transport=transport, token="a-wrong-key-for-the-hub") as listener:
            await listener.until("error", {"pattern": "news", "message": "The key is invalid or has been removed."})


SITES: dict[str, Callable[[Path, int], Any]] = {
    "nginx": lambda folder, port: nginx_site(
        folder,
        (ROOT / "examples" / "nginx.conf")
        .read_text("utf-8")
        .replace("127.0.0.1:8000", f"127.0.0.1:{port}")
        .replace("server_name mcp.example.com;", ""),
    ),
    "haproxy": lambda folder, port: haproxy(
        folder,
        (ROOT / "examples" / "haproxy.cfg")
        .read_text("utf-8")
        .replace("127.0.0.1:8000", f"127.0.0.1:{port}")
        .replace("    server two 127.0.0.1:8001 check\n", ""),
    ),
}


@pytest.mark.parametrize(
    "proxy", [pytest.param("nginx", marks=NEEDS_NGINX), pytest.param("haproxy", marks=NEEDS_HAPROXY)]
)
@pytest.mark.parametrize("options", [{}, *({"transport": each} for each in PYTHON[::2])], ids=["js", *PYTHON[::2]])
async def test_restart_behind_a_proxy_loses_nothing(tmp_path: Path, proxy: str, options: dict[str, Any]) -> None:
    """The server is down twice, with two workers, and the proxy answers for it. nginx's site doesn't pass WebSockets
    on.
    """
    backend = free_port()
    command = run_command(HUB, backend, "--workers", "2", "--store", f"sqlite:///{tmp_path}/store.db")
    with ExitStack() as running:
        server = running.enter_context(ExitStack())
        server.enter_context(run_server(command, backend, tmp_path / "log"))
        port = running.enter_context(SITES[proxy](tmp_path / proxy, backend))
        async with listening(port, {"restart": {"history": 9}}, impatient=True, **options) as listener:
            await listener.until("ready")
            await publish(backend, "restart", "0")
            for number in (1, 2):
                await asyncio.to_thread(server.close)
                while (await listener.until("state"))[1].get("status") not in (502, 503):
                    pass
                server.enter_context(run_server(command, backend, tmp_path / f"log{number}"))
                await publish(backend, "restart", f"{number}")
                await listener.until("restart", f"{number}")
            assert listener.values("restart") == ["0", "1", "2"]
            assert listener.values("gap") == []
