"""Items that extensions add, and hooks of several extensions side by side."""

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

import msgspec
import pytest

from cases import for_each
from millstream import Client, Server, Settings
from millstream._override import override
from millstream.client import ServerError
from millstream.extensions import Extension, Host
from millstream.items import Call, ItemSource, Prompt, Resource, Template, Tool
from millstream.protocol import NEWEST, NEWEST_HANDSHAKE


class Opened(Extension):
    """Calls a function when the server starts."""

    settings = None

    def __init__(self, name: str, opened: Callable[[Host], object]) -> None:
        self.name = f"com.example/{name}"
        self._opened = opened

    @override
    async def open(self, host: Host) -> None:
        """Register what the test is about."""
        self._opened(host)


def source(name: str, schema: Mapping[str, Any]) -> ItemSource:
    """Return a source that returns its name."""

    async def run(arguments: Any, call: Call) -> str:
        return name

    return ItemSource(name, run, read, schema=schema)


def read(arguments: Any) -> Any:
    """Read the arguments of a call, or the variables of a URI."""
    return arguments if isinstance(arguments, Mapping) else msgspec.json.decode(arguments)


ITEMS = (
    Tool(source("add", {"properties": {}})),
    Prompt(source("ask", {"properties": {}})),
    Resource("shop://hours", source("hours", {"properties": {}})),
    Template("shop://books/{isbn}", source("book", {"properties": {"isbn": {"type": "string"}}})),
)


def add_items(host: Host) -> None:
    """Add one item of each kind."""
    for item in ITEMS:
        host.add_item(item)


async def names_of(client: Client) -> list[str]:
    """List every item."""
    tools, prompts = await client.tools(), await client.prompts()
    resources, templates = await client.resources(), await client.templates()
    return [
        *(tool.name for tool in tools), *(prompt.name for prompt in prompts),
        *(resource.uri for resource in resources), *(template.uri_template for template in templates),
    ]  # fmt: skip


async def test_extension_items_can_be_used_after_every_start() -> None:
    mcp = Server("shop", extensions=[Opened("items", add_items)])
    for _ in range(2):
        async with mcp.running(), Client(mcp) as client:
            assert await names_of(client) == ["add", "ask", "shop://hours", "shop://books/{isbn}"]
            assert (await client.call("add")).text == "add"
            assert (await client.read("shop://books/7"))[0].text == "book"


async def test_clients_no_longer_see_removed_items() -> None:
    def open_shop(host: Host) -> None:
        add_items(host)
        for item in ITEMS:
            host.remove_item(item)

    mcp = Server("shop", extensions=[Opened("items", open_shop)])
    async with mcp.running(), Client(mcp) as client:
        assert await names_of(client) == []


async def test_items_whose_name_is_taken_prevent_startup() -> None:
    mcp = Server("shop", extensions=[Opened("items", add_items)])
    mcp.tool(lambda: 1, name="add", description="Add.")
    with pytest.raises(ValueError, match="The tool 'add' already exists"):
        async with mcp.running():
            pass


def three_tools(mcp: Server) -> Server:
    """Add tools to a server."""
    for name in ("one", "two", "three"):
        mcp.tool(lambda: 1, name=name, description="Count.")
    return mcp


async def listed(mcp: Server) -> list[str]:
    """Return the names of the tools that clients see."""
    async with mcp.running(), Client(mcp) as client:
        return [tool.name for tool in await client.tools()]


async def test_tool_search_survives_an_extension_that_selects_tools() -> None:
    mine = Opened("mine", lambda host: host.select_listed(lambda kind, items: items))
    mcp = Server("shop", extensions=[mine], settings=Settings(tool_search=True))
    assert await listed(three_tools(mcp)) == ["search_tools", "call_tool"]


async def test_each_list_hook_gets_the_previous_hooks_selection() -> None:
    def without(hidden: str) -> Callable[[Host], None]:
        return lambda host: host.select_listed(
            lambda kind, items: {name: item for name, item in items.items() if name != hidden}
        )

    mcp = Server("shop", extensions=[Opened("a", without("one")), Opened("b", without("three"))])
    assert await listed(three_tools(mcp)) == ["two"]


async def test_list_hooks_end_with_the_server() -> None:
    starts: list[Host] = []

    def hide_all(host: Host) -> None:
        starts.append(host)
        if len(starts) == 1:
            host.select_listed(lambda kind, items: {})

    mcp = three_tools(Server("shop", extensions=[Opened("once", hide_all)]))
    assert await listed(mcp) == []
    assert await listed(mcp) == ["one", "two", "three"]


async def test_first_extension_that_finds_a_resource_serves_it() -> None:
    def finds(uris: tuple[str, ...], name: str) -> Callable[[Host], None]:
        def find(uri: str) -> Resource | None:
            return Resource(uri, source(name, {"properties": {}})) if uri in uris else None

        return lambda host: host.find_resources(find)

    extensions = [Opened("a", finds(("shop://1",), "a")), Opened("b", finds(("shop://1", "shop://2"), "b"))]
    mcp = Server("shop", extensions=extensions)
    async with mcp.running(), Client(mcp) as client:
        assert [(await client.read(f"shop://{number}"))[0].text for number in (1, 2)] == ["a", "b"]
        with pytest.raises(ServerError):
            await client.read("shop://3")


@for_each("revision", [NEWEST.date, NEWEST_HANDSHAKE.date])
async def test_first_extension_that_finds_a_method_answers_it(revision: str) -> None:
    def finds(methods: tuple[str, ...], name: str) -> Callable[[Host], None]:
        def find(method: str, date: str) -> Callable[[], dict[str, str]] | None:
            return (lambda: {"from": name, "date": date}) if method in methods else None

        return lambda host: host.find_methods(find)

    extensions = [Opened("a", finds(("x/1",), "a")), Opened("b", finds(("x/1", "x/2"), "b"))]
    mcp = Server("shop", extensions=extensions)
    async with mcp.running(), Client(mcp, revision=revision) as client:
        for method, name in (("x/1", "a"), ("x/2", "b")):
            result = await client.request(method, {})
            assert (result["from"], result["date"]) == (name, revision)
        with pytest.raises(ServerError, match="32601"):
            await client.request("x/3", {})


async def test_failed_drain_hook_does_not_keep_extensions_from_closing(caplog: pytest.LogCaptureFixture) -> None:
    happened: list[str] = []

    async def fail(seconds: float) -> None:
        happened.append("drained")
        raise RuntimeError("no disk")

    def register(host: Host) -> None:
        host.on_drain(fail)
        host.on_close(lambda: happened.append("closed"))

    async with Server("shop", extensions=[Opened("till", register)]).running() as runtime:
        await runtime.drain(0.1)
    assert happened == ["drained", "closed"]
    assert "no disk" in caplog.text


async def test_endless_drain_hook_is_canceled_after_its_time(caplog: pytest.LogCaptureFixture) -> None:
    closed: list[str] = []

    async def wait(seconds: float) -> None:
        await asyncio.Event().wait()

    def register(host: Host) -> None:
        host.on_drain(wait)
        host.on_close(lambda: closed.append("till"))

    async with Server("shop", extensions=[Opened("till", register)]).running():
        pass
    assert closed == ["till"]
    assert "TimeoutError" in caplog.text
