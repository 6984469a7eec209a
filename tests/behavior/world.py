"""The server of the behavior tests, built for each set of settings. For stdio, it's run from this file."""

import os
from collections.abc import Callable
from typing import Any, Literal

from behavior import functions as do
from millstream import Context, Icon, Info, Message, Server, Settings, Text, ToolAnnotations
from millstream._protocol.content import ToolUse
from millstream._server.features.tools import Tool
from schema_source import source_from_schema

TOOLS: list[Callable[..., Any]] = [
    do.add, do.text, do.picture_bytes, do.other_bytes, do.point, do.size, do.person, do.image, do.audio, do.link,
    do.embedded, do.mixed, do.nothing, do.number, do.numbers, do.mapping, do.spelled_out, do.routed, do.fails,
    do.breaks, do.lies, do.steps, do.logs, do.counts, do.counts_in_thread, do.waits, do.waits_in_thread,
    do.thread_name, do.polled, do.asks, do.asks_in_thread, do.insists, do.asks_url, do.samples,
    do.samples_with_tools, do.samples_conversation, do.lists_roots,
    do.asks_all, do.asks_twice, do.asks_twice_in_thread,
    do.never_content, do.who,
]  # fmt: skip
OPTIONED: list[tuple[Callable[..., Any], dict[str, Any]]] = [
    (do.journal, {"thread": False}),
    (do.awaited, {}),
    (do.open_gate, {"thread": False}),
    (do.sleeps, {"timeout": 0.01}),
    (do.blocks_too_long, {"timeout": 0.1}),
    (do.needs_sampling, {"requires": {"sampling": {}}}),
]
WEIGH = {"type": "object", "properties": {"of": {"type": "string"}}, "required": ["of"], "additionalProperties": False}
THREADS = int(os.environ.get("BEHAVIOR_THREADS", "2"))
"""Few by default, so tests can exhaust them. Shared servers need more."""
ICON = Icon(src="https://example.com/icon.png", mime_type="image/png", sizes=["48x48"])


def build(**settings: Any) -> Server:
    """Build the server with some settings."""
    server = Server(
        "world",
        version="1.2.3",
        instructions="Ask for anything.",
        info=Info(title="The world", description="All there is.", icons=[ICON], website_url="https://example.com"),
        settings=Settings(
            **{"page_size": 10, "max_threads": THREADS, "secret_key": "the one key of every behavior test", **settings}
        ),
    )
    for function in TOOLS:
        server.tool(function)
    for function, options in OPTIONED:
        server.tool(**options)(function)
    annotations = ToolAnnotations(title="Everything", read_only_hint=True)
    server.tool(
        name="decorated", title="Decorated", annotations=annotations, icons=[ICON], meta={"example.com/group": "a"}
    )(do.text)
    source = source_from_schema(
        "weigh", do.weigh, input_schema=WEIGH, output_schema={"type": "array"}, description="Weigh."
    )
    server.registry.add("tools", "weigh", Tool(source, title="Scales"))
    _add_resources(server)
    _add_prompts(server)
    _add_changes(server)
    server.mount(stock(), prefix="stock")
    return server


def _add_resources(server: Server) -> None:
    @server.resource("note://one", title="Note one", mime_type="text/plain", icons=[ICON], size=5)
    def one() -> str:
        return "hello"

    @server.resource("note://bytes", mime_type="application/octet-stream")
    def bytes_note() -> bytes:
        return b"\x00\x01"

    @server.resource("book://{isbn}/{page}")
    def page(isbn: str, page: int) -> str:
        return f"{isbn} page {page + 1}"

    @server.live("orders://{number}")
    def orders(number: int) -> dict[str, int]:
        return {"number": number}

    @server.resource("note://broken")
    def broken_note() -> str:
        raise ValueError("the secret")

    @server.complete("book://{isbn}/{page}", argument="isbn")
    def isbns(value: str, arguments: dict[str, str]) -> list[str]:
        return [each for each in ("111", "112", "222") if each.startswith(value)]


def _add_prompts(server: Server) -> None:
    @server.prompt(title="Greeting")
    def greet(name: str, tone: Literal["dry", "warm", "wry"] = "warm") -> str:
        """Greets somebody."""
        return f"Greet {name} in a {tone} way."

    @server.prompt
    def in_blocks() -> list[Message]:
        return [Message("assistant", [Text("one"), Text("two")]), Message("user", "three")]

    @server.prompt
    def uses_a_tool() -> Message:
        return Message("assistant", [ToolUse("1", "weather", {})])

    @server.prompt
    def broken() -> str:
        raise ValueError("the secret")

    @server.prompt
    def show() -> list[Message]:
        return [Message("user", "Look:"), Message("user", do.audio()), Message("assistant", do.link())]

    @server.prompt
    async def asking(ctx: Context) -> str:
        return f"About {(await ctx.elicit('Which point?', do.Point)).x}"

    @server.complete("greet", argument="name")
    async def names(value: str, arguments: dict[str, str]) -> list[str]:
        title = "Dr. " if arguments.get("tone") == "dry" else ""
        return [title + each for each in ("Ada", "Alan", "Grace") if each.startswith(value)]


def _add_changes(server: Server) -> None:
    @server.tool
    async def touch(uri: str) -> str:
        await server.resource_updated(uri)
        return "touched"

    @server.tool
    async def grow(kind: Literal["tools", "prompts", "resources"]) -> str:
        """Adds something and takes it away again."""
        if kind == "tools":
            server.tool(name="brief")(do.text)
            server.remove_tool("brief")
        elif kind == "prompts":
            server.prompt(name="brief")(do.text)
            server.remove_prompt("brief")
        else:
            server.resource("note://brief")(do.text)
            server.remove_resource("note://brief")
        return "grown"


def stock() -> Server:
    """Return a server that is mounted in the world server."""
    server = Server("stock", settings=Settings())

    @server.tool
    def count(item: str) -> str:
        return f"7 {item}"

    @server.tool
    async def refill() -> str:
        await server.resource_updated("shelf://a")
        return "refilled"

    @server.prompt
    def describe(item: str) -> str:
        return f"Describe {item}."

    @server.resource("shelf://a")
    def shelf() -> str:
        return "top shelf"

    @server.resource("item://{number}")
    def item(number: int) -> str:
        return f"item {number}"

    @server.complete("describe", argument="item")
    def items(value: str, arguments: dict[str, str]) -> list[str]:
        return ["nails"]

    return server


mcp = build()
