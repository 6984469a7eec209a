import asyncio
import sys
from collections.abc import Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from cases import for_each
from examples import extension as example
from extensions.shop import NAME, Peer, Stock
from millstream import Client, Server
from millstream.client import Question, ServerError
from millstream.extensions import Extension, Host, LocalError, method
from millstream.protocol import BY_DATE, NEWEST, NEWEST_HANDSHAKE
from millstream.testing import connect
from patience import WAIT
from processes import SharedServer, run_command, share_server

FILE = Path(__file__).parent / "shop.py"
DATES = list(BY_DATE)
TRANSPORTS = [
    *[("http", "/mcp", date) for date in DATES[1:]],
    *[("http", "/sse", date) for date in DATES[:-1]],
    *[("ws", "/ws", date) for date in DATES],
]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SharedServer]:
    with share_server(
        lambda port: run_command(str(FILE), port, "--serve", "hub"), tmp_path_factory.mktemp("shop")
    ) as running:
        yield running


async def _use_extension(target: Any, revision: str) -> None:
    """Use the methods and notifications of the extension in both directions."""
    peer = Peer()
    async with asyncio.timeout(WAIT), Client(target, revision=revision, extensions=[peer]) as client:
        assert client.server_extensions[NAME] == {"unit": "copy"}
        before = (await client.request("com.example/stock", {"isbn": "1"}))["copies"]
        await peer.came.wait()
        assert peer.looking == [("1", "peer")]
        await client.notify("com.example/sold", {"isbn": "1"})
        # The server doesn't answer notifications, so ask until it has handled this one.
        while (after := await client.request("com.example/stock", {"isbn": "1"}))["copies"] == before:
            pass
        assert (after["copies"], after["com.example/seen"]) == (before - 1, True)
        assert (await client.call("order", isbn="1")).text == "Ordered 1"
        reserved = await client.request("com.example/reserve", {"isbn": "é"}, name="é")
        assert reserved["reserved"] == "é"
        assert reserved["_meta"]["com.example/n"] == 2
        tools = await client.tools()
        assert {tool.meta[NAME] for tool in tools} == {"tools"}
        with pytest.raises(ServerError, match="No such book"):
            await client.request("com.example/stock", {"isbn": "0"})
        with pytest.raises(ServerError, match="Invalid params"):
            await client.request("com.example/stock", {"isbn": 1})
        await client.ping()
        assert peer.ordered == ["1"]
        if BY_DATE[revision].handshake:
            peer.came.clear()
            await client.request("com.example/tell")
            await peer.came.wait()
            assert peer.looking[-1] == ("all", "")


@pytest.mark.server
@for_each(("scheme", "path", "revision"), TRANSPORTS)
async def test_extension_works_in_every_revision_and_transport(
    server: SharedServer, scheme: str, path: str, revision: str
) -> None:
    await _use_extension(f"{scheme}://127.0.0.1:{server.port()}{path}", revision)


@pytest.mark.server
@for_each("revision", DATES)
async def test_extension_works_over_stdio(revision: str) -> None:
    await _use_extension([sys.executable, str(FILE)], revision)


@for_each("revision", [NEWEST.date, NEWEST_HANDSHAKE.date])
async def test_methods_can_require_the_extension(revision: str) -> None:
    async with connect(Server("shop", extensions=[Stock()]), revision=revision) as client:
        with pytest.raises(ServerError) as refused:
            await client.request("com.example/reserve", {"isbn": "1"})
        assert (refused.value.code, refused.value.data) == (
            -32021 if revision == NEWEST.date else -32602,
            {"requiredCapabilities": {"extensions": {NAME: {}}}},
        )
        assert (await client.request("com.example/stock", {"isbn": "1"}))["copies"] == 7
        await client.call("order", isbn="1")
        assert [each["method"] for each in client.notifications if each["method"] == "com.example/ordered"] == []


@for_each("revision", [NEWEST.date, NEWEST_HANDSHAKE.date])
async def test_method_can_ask_the_user(revision: str) -> None:
    def answer(question: Question) -> dict[str, str]:
        return {"name": "Ada"}

    server = Server("shop", extensions=[Stock()])
    async with connect(server, revision=revision, elicit=answer) as client:
        assert (await client.request("com.example/name"))["name"] == "Ada"


async def test_tool_can_return_a_custom_result_type() -> None:
    async with connect(Server("shop", extensions=[Stock()])) as client:
        result = await client.request("tools/call", {"name": "slip", "arguments": {"isbn": "1"}})
        assert (result["resultType"], result["isbn"], result["_meta"]["com.example/n"]) == ("slip", "1", 1)
        assert "io.modelcontextprotocol/serverInfo" in result["_meta"]


async def test_subscription_carries_extension_notifications() -> None:
    stock, peer = Stock(), Peer()
    async with asyncio.timeout(WAIT), Client(Server("shop", extensions=[stock]), extensions=[peer]) as client:
        notes: list[Any] = []
        came = asyncio.Event()

        def note(notification: Any) -> None:
            notes.append(notification)
            came.set()

        client.conversation.requests.incoming.observer = note
        wanted = {"notifications": {"isbns": ["1", "2"]}}
        listening = asyncio.create_task(client.request("subscriptions/listen", wanted, timeout=WAIT))
        await came.wait()
        assert b'"isbns":["1"]' in bytes(notes[0].params)
        came.clear()
        (subscription,) = stock.subscriptions
        assert subscription.push("com.example/looking", {"isbn": "1", "by": ""})
        await came.wait()
        assert b'"io.modelcontextprotocol/subscriptionId"' in bytes(notes[1].params)
        listening.cancel()
        await asyncio.gather(listening, return_exceptions=True)
        await stock.ended.wait()
        assert stock.subscriptions == []
    async with connect(Server("shop", extensions=[Stock()])) as plain:
        with pytest.raises(ServerError, match="Missing required client capability"):
            await plain.request("subscriptions/listen", wanted)


@for_each("revision", [NEWEST.date, NEWEST_HANDSHAKE.date])
async def test_method_can_stream_its_reply(revision: str) -> None:
    stock, peer = Stock(), Peer()
    server = Server("shop", extensions=[stock])
    async with asyncio.timeout(WAIT), Client(server, revision=revision, extensions=[peer]) as client:
        following = asyncio.create_task(client.request("com.example/follow", timeout=WAIT))
        await peer.came.wait()
        assert (peer.looking, stock.open_streams) == ([("followed", "")], 1)
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)
        await stock.ended.wait()
        assert stock.open_streams == 0


@pytest.mark.server
async def test_broadcasts_reach_sessions_that_declare_the_extension() -> None:
    stock, peer = Stock(), Peer()
    server = Server("shop", extensions=[stock])
    old = NEWEST_HANDSHAKE.date
    async with (
        asyncio.timeout(WAIT),
        Client(server, revision=old, extensions=[peer]) as client,
        connect(server, revision=old) as plain,
    ):
        stock.host.broadcast("com.example/looking", {"isbn": "all", "by": ""})
        await peer.came.wait()
        await client.ping()
        await plain.ping()
        assert peer.looking == [("all", "")]
        assert [each["method"] for each in plain.notifications] == []


@pytest.mark.server
async def test_broadcasts_reach_sessions_on_every_worker(tmp_path: Path) -> None:
    with share_server(lambda port: run_command(str(FILE), port, "--workers", "2"), tmp_path) as running:
        url = f"http://127.0.0.1:{running.port()}/mcp"
        peers = [Peer() for _ in range(8)]
        async with asyncio.timeout(WAIT), AsyncExitStack() as stack:
            clients = [
                await stack.enter_async_context(Client(url, revision=NEWEST_HANDSHAKE.date, extensions=[peer]))
                for peer in peers
            ]
            await clients[0].request("com.example/tell")
            for peer in peers:
                await peer.came.wait()
            assert [peer.looking for peer in peers] == [[("all", "")]] * len(peers)


async def test_invalid_extensions_are_rejected_at_creation_or_startup() -> None:
    class Ping(Extension):
        name = "com.example/ping"

        @method("ping")
        async def ping(self) -> None:
            """Answer."""

    class Needy(Extension):
        name = "com.example/needy"
        needs = ("com.example/stock",)

    class Picky(Extension):
        name = "com.example/picky"

        def unmet(self, server: Server) -> str:
            """Return an error unless a tool exists."""
            return "" if server.registry.tools else "it needs a tool"

    with pytest.raises(ValueError, match="Two extensions have the name"):
        Server("shop", extensions=[Stock(), Stock()])
    with pytest.raises(ValueError, match="use an identifier with a prefix"):
        Server("shop", extensions=[Extension()])
    with pytest.raises(TypeError, match="not the class Stock"):
        Server("shop", extensions=[Stock])  # type: ignore[list-item]
    with pytest.raises(ValueError, match="Two extensions have the name"):
        Client(Server("shop"), extensions=[Peer(), Peer()])
    for name in ("com.example/ordered", "roots/list"):
        members = {"name": "com.example/other", "connect": lambda _, host, name=name: host.notification(name, print)}
        with pytest.raises(ValueError, match=f"^The method '{name}' already exists"):
            Client(Server("shop"), extensions=[Peer(), type("Other", (Extension,), members)()])
    for wrong, text in ((Ping(), "The method 'ping' already exists"), (Needy(), "needs 'com.example/stock'"),
                        (Picky(), "The extension 'com.example/picky' can't run: it needs a tool")):  # fmt: skip
        with pytest.raises(Exception, match=text):
            async with Server("shop", extensions=[wrong]).running():
                raise AssertionError
    async with Server("shop", extensions=[Needy(), Stock()]).running():
        pass


@pytest.mark.parametrize("hook", ["open", "close"])
def test_an_extension_with_a_plain_open_or_close_is_rejected_by_name(hook: str) -> None:
    members: dict[str, Any] = {"name": "com.example/plain", hook: lambda *given: None}
    plain = type("Plain", (Extension,), members)()
    with pytest.raises(TypeError, match=f"extensions: {hook} of Plain must be `async def`"):
        Server("shop", extensions=[plain])


async def test_extension_can_be_added_to_an_existing_server() -> None:
    server = Server("shop")

    @server.tool
    def add(a: int, b: int) -> int:
        """Add."""
        return a + b

    stock = Stock()
    server.extend(stock)
    assert (server.extension(Stock), server.extension(Peer)) == (stock, None)
    with pytest.raises(ValueError, match="Two extensions have the name"):
        server.extend(Stock())
    late = Stock()
    late.name = "com.example/late"
    with pytest.raises(LocalError, match="added after the items"):
        server.extend(late)
    async with connect(server) as client:
        assert {tool.meta[NAME] for tool in await client.tools()} == {"tools"}
        assert (await client.call("add", a=1, b=2)).data == 3
        with pytest.raises(LocalError, match="already running"):
            server.extend(late)


async def test_extension_closes_with_the_server_and_can_reopen() -> None:
    stock = Stock()
    server = Server("shop", extensions=[stock])
    for number in (1, 2):
        async with connect(server) as client:
            assert (await client.request("com.example/stock", {"isbn": "1"}))["copies"] == 7
        assert stock.closed == number


async def test_extension_is_hidden_in_unsupported_revisions() -> None:
    class New(Extension):
        name = "com.example/new"
        revisions = (NEWEST.date,)

        async def open(self, host: Host) -> None:
            """Also announce it to peers that know only experimental capabilities."""
            host.capability({}, member="experimental")

        @method("com.example/new")
        async def new(self) -> dict[str, int]:
            """Answer."""
            return {"n": 1}

    server = Server("shop", extensions=[New()])
    for revision in BY_DATE.values():
        async with connect(server, revision=revision.date) as client:
            if revision is NEWEST:
                assert (await client.request("com.example/new"))["n"] == 1
                assert client.capabilities["experimental"] == {"com.example/new": {}}
                continue
            assert not {"extensions", "experimental"} & set(client.capabilities)
            with pytest.raises(ServerError, match="Method not found"):
                await client.request("com.example/new")


async def test_documented_example_works() -> None:
    assert await example.restock(example.mcp) == 6  # type: ignore[arg-type]
    orders = example.Orders()
    async with Client(example.mcp, extensions=[orders]) as client:
        assert (await client.call("order", isbn="1")).text == "Ordered 1"
        assert [tool.meta for tool in await client.tools()] == [{"com.example/stock": True}]
        await client.ping()
    assert orders.ordered == ["1"]
