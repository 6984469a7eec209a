import json
import time
from typing import Any

import pytest

from cases import for_each
from millstream import Context, ProtocolError, Server, ToolError
from millstream.middleware import ListRequest, MessageRequest, Middleware, Next, Request
from millstream.protocol import BY_DATE, NEWEST
from millstream.testing import ServerError, connect
from wire import POST, ask_asgi, encode_headers, per_request, request, routing


class Notes(Middleware):
    """Middleware that records requests in order."""

    def __init__(self, notes: list[str], name: str = "") -> None:
        self.notes = notes
        self.name = name

    async def on_call(self, request: Request, next: Next) -> Any:
        self.notes.append(f"{self.name}call {request.name} {request.arguments}")
        result = await next(request)
        self.notes.append(f"{self.name}gave {result}")
        return result

    async def on_read(self, request: Request, next: Next) -> Any:
        self.notes.append(f"{self.name}read {request.name} {request.arguments}")
        return await next(request)

    async def on_prompt(self, request: Request, next: Next) -> Any:
        self.notes.append(f"{self.name}prompt {request.name} {request.arguments}")
        return await next(request)

    async def on_list(self, request: ListRequest, next: Next) -> list[dict[str, Any]]:
        items: list[dict[str, Any]] = await next(request)
        self.notes.append(f"{self.name}list {request.kind} {len(items)}")
        return items

    async def on_message(self, request: MessageRequest, next: Next) -> dict[str, Any]:
        if request.method in ("ping", "server/discover"):
            return {} if request.method == "ping" else await next(request)
        self.notes.append(f"{self.name}message {request.method}")
        result: dict[str, Any] = await next(request)
        return result


def shop(*middleware: object, name: str = "shop") -> Server:
    """Return a server with one item of each kind."""
    mcp = Server(name, middleware=middleware)

    @mcp.tool
    async def order(isbn: str, copies: int = 1) -> str:
        return f"{copies} of {isbn}"

    @mcp.resource("shop://book/{isbn}")
    def book(isbn: str) -> str:
        return f"book {isbn}"

    @mcp.resource("shop://sales")
    def sales() -> str:
        return "none"

    @mcp.prompt
    def advise(topic: str) -> str:
        return f"about {topic}"

    return mcp


@for_each("revision", list(BY_DATE))
async def test_each_request_type_runs_its_hook_on_every_revision(revision: str) -> None:
    notes: list[str] = []
    async with connect(shop(Notes(notes)), revision=revision) as client:
        notes.clear()
        await client.call("order", isbn="7")
        await client.read("shop://book/7")
        await client.read("shop://sales")
        await client.prompt("advise", topic="x")
        for kind in ("tools", "resources", "prompts", "resources/templates"):
            await client.request(f"{kind}/list")
    assert notes == [
        "message tools/call", "call order {'isbn': '7', 'copies': 1}", "gave 1 of 7",
        "message resources/read", "read shop://book/7 {'isbn': '7'}",
        "message resources/read", "read shop://sales {}",
        "message prompts/get", "prompt advise {'topic': 'x'}",
        "message tools/list", "list tools 1", "message resources/list", "list resources 1",
        "message prompts/list", "list prompts 1", "message resources/templates/list", "list templates 1",
    ]  # fmt: skip


async def test_hooks_can_change_arguments_and_results() -> None:

    class Changing:
        async def on_call(self, request: Request, next: Next) -> Any:
            if request.arguments["isbn"] == "bad":
                request.arguments["copies"] = "many"
            elif request.arguments["isbn"] == "new":
                request.arguments = {"isbn": "other", "copies": 3}
            return f"({await next(request)})"

        async def on_prompt(self, request: Request, next: Next) -> Any:
            request.arguments["topic"] = "something else"
            return await next(request)

        async def on_read(self, request: Request, next: Next) -> Any:
            if request.arguments:
                request.arguments["isbn"] = 8
            return await next(request)

        async def on_list(self, request: ListRequest, next: Next) -> list[dict[str, Any]]:
            return [{**each, "description": "changed"} for each in await next(request)]

    async with connect(shop(Changing())) as client:
        assert (await client.call("order", isbn="1")).text == "(1 of 1)"
        assert (await client.call("order", isbn="new")).text == "(3 of other)"
        bad = await client.call("order", isbn="bad", raise_on_error=False)
        assert "copies" in bad.text
        assert bad.is_error
        assert (await client.prompt("advise", topic="x")).text == "about something else"
        assert (await client.read("shop://book/7"))[0].text == "book 8"
        assert (await client.request("tools/list"))["tools"][0]["description"] == "changed"


async def test_hooks_can_reject_respond_and_observe_failures() -> None:
    heard: list[str] = []

    class Refusing:
        async def on_message(self, request: MessageRequest, next: Next) -> Any:
            try:
                return await next(request)
            except (ToolError, ProtocolError) as exc:
                heard.append(str(exc))
                raise

        async def on_call(self, request: Request, next: Next) -> Any:
            if request.arguments["isbn"] == "secret":
                raise ToolError("not for you")
            return "from the cache"

    async with connect(shop(Refusing())) as client:
        assert (await client.call("order", isbn="secret", raise_on_error=False)).text == "not for you"
        assert (await client.call("order", isbn="x")).text == "from the cache"
        with pytest.raises(ServerError):
            await client.call("missing")
        await client.call("order", isbn=7, raise_on_error=False)
    assert heard[:2] == ["not for you", "Unknown tool: 'missing'"]
    assert "isbn" in heard[2]


async def test_message_hooks_change_params_before_parsing() -> None:

    class Mending:
        async def on_message(self, request: MessageRequest, next: Next) -> Any:
            if request.method == "tools/call":
                request.params["arguments"] = {key.lower(): each for key, each in request.params["arguments"].items()}
            return await next(request)

    async with connect(shop(Mending())) as client:
        assert (await client.call("order", ISBN="7", Copies=2)).text == "2 of 7"


async def test_middleware_and_function_share_call_state() -> None:

    class Clock:
        async def on_message(self, request: MessageRequest, next: Next) -> Any:
            request.context.state["since"] = time.monotonic()
            return await next(request)

    mcp = Server("shop", middleware=[Clock()])

    @mcp.tool
    async def age(ctx: Context) -> bool:
        return "since" in ctx.state

    async with connect(mcp) as client:
        assert (await client.call("age")).data is True


async def test_mounted_server_middleware_runs_inside_the_outer_middleware() -> None:
    notes: list[str] = []
    outer, middle, inner = (Server("outer", middleware=[Notes(notes, "outer: ")]), Server("middle"),
                            shop(Notes(notes, "inner: ")))  # fmt: skip
    middle.mount(inner, prefix="in")
    outer.mount(middle)

    @outer.tool
    async def own() -> str:
        return "own"

    async with connect(outer) as client:
        notes.clear()
        await client.call("in_order", isbn="7")
        await client.call("own")
        assert [each["name"] for each in (await client.request("tools/list"))["tools"]] == ["in_order", "own"]
    assert notes == [
        "outer: message tools/call", "inner: message tools/call",
        "outer: call in_order {'isbn': '7', 'copies': 1}", "inner: call order {'isbn': '7', 'copies': 1}",
        "inner: gave 1 of 7", "outer: gave 1 of 7",
        "outer: message tools/call", "outer: call own {}", "outer: gave own",
        "outer: message tools/list", "inner: list tools 1", "outer: list tools 2",
    ]  # fmt: skip


async def test_mounted_server_hides_items_from_the_outer_lists() -> None:
    class Hiding:
        async def on_list(self, request: ListRequest, next: Next) -> list[dict[str, Any]]:
            return []

    outer = Server("outer")

    @outer.tool
    async def first() -> str:
        return ""

    outer.mount(shop(Hiding()), prefix="in")

    @outer.tool
    async def last() -> str:
        return ""

    async with connect(outer) as client:
        assert [each["name"] for each in (await client.request("tools/list"))["tools"]] == ["first", "last"]


@for_each("only_calls", [True, False])
async def test_http_fast_path_runs_the_hooks(only_calls: bool) -> None:
    notes: list[str] = []
    hooks = Notes(notes)
    mcp = shop(type("CallOnly", (), {"on_call": staticmethod(hooks.on_call)})() if only_calls else hooks)
    call = {"name": "order", "arguments": {"isbn": "7"}}
    async with mcp.running():
        for message, head in (
            (per_request("tools/call", call), routing("tools/call", "order")),
            (request("tools/call", call), POST),
        ):
            notes.clear()
            reply = await ask_asgi(mcp, "POST", "/mcp", encode_headers(head), json.dumps(message).encode())
            assert reply.message["result"]["content"][0]["text"] == "1 of 7"
            assert "call order {'isbn': '7', 'copies': 1}" in notes
            assert ("message tools/call" in notes) is not only_calls


class Mistaken:
    async def on_tool_call(self, request: Request, next: Next) -> Any:
        """As another framework calls it."""


class Blocking:
    def on_call(self, request: Request, next: Next) -> Any:
        """Not `async def`."""


@for_each(
    ("middleware", "said"),
    [
        (Mistaken(), "Mistaken has on_tool_call. Hooks are on_call, on_read"),
        (Blocking(), "on_call of Blocking must be `async def`"),
        (Notes, r"Pass an instance: Notes\(\)"),
        (Middleware(), "Middleware has no hook"),
    ],
)
def test_invalid_middleware_is_rejected_at_construction(middleware: object, said: str) -> None:
    with pytest.raises(TypeError, match=said):
        Server("shop", middleware=[middleware])


async def test_unrelated_hooks_do_not_slow_tools() -> None:
    class ReadOnly(Middleware):
        async def on_read(self, request: Request, next: Next) -> Any:
            return await next(request)

    plain, hooked = shop(), shop(ReadOnly())
    assert hooked.registry.tools["order"].run.__qualname__ == plain.registry.tools["order"].run.__qualname__
    assert hooked.registry.tools["order"].plain
    async with hooked.running() as runtime:
        assert runtime.dispatcher.around is None
    assert NEWEST.date


async def test_hidden_items_do_not_bypass_other_servers_middleware() -> None:
    notes: list[str] = []
    shelf = Server("shelf", middleware=[Notes(notes)])

    @shelf.resource("book://{isbn}")
    async def book(isbn: str) -> str:
        return isbn

    shop = Server("shop")

    @shop.resource("book://{draft}", visible=lambda principal: False)
    async def drafts(draft: str) -> str:
        return "nobody sees this"

    shop.mount(shelf)
    async with connect(shop) as client:
        notes.clear()
        assert (await client.read("book://7"))[0].text == "7"
    assert notes[0] == "message resources/read"


async def test_completion_runs_the_owning_servers_middleware() -> None:
    notes: list[str] = []
    shelf = Server("shelf", middleware=[Notes(notes)])

    @shelf.resource("book://{isbn}")
    async def book(isbn: str) -> str:
        return isbn

    @shelf.prompt
    async def review(isbn: str) -> str:
        return isbn

    shop = Server("shop")
    shop.mount(shelf, prefix="old")
    async with connect(shop) as client:
        names = [each["name"] for each in (await client.request("prompts/list"))["prompts"]]
        uris = [each["uriTemplate"] for each in (await client.request("resources/templates/list"))["resourceTemplates"]]
        notes.clear()
        for ref in ({"type": "ref/prompt", "name": names[0]}, {"type": "ref/resource", "uri": uris[0]}):
            await client.request("completion/complete", {"ref": ref, "argument": {"name": "isbn", "value": ""}})
    assert notes == ["message completion/complete"] * 2


class FilterLists(Middleware):
    """Shows nothing to children."""

    async def on_list(self, request: ListRequest, next: Next) -> list[dict[str, Any]]:
        items: list[dict[str, Any]] = await next(request)
        return [] if request.context.client.name == "child" else items


class FilterMessages(Middleware):
    """Does the same for whole messages."""

    async def on_message(self, request: MessageRequest, next: Next) -> dict[str, Any]:
        result: dict[str, Any] = await next(request)
        return {**result, "tools": []} if request.context.client.name == "child" else result


class CountCalls(Middleware):
    """Doesn't change lists."""

    async def on_call(self, request: Request, next: Next) -> Any:
        return await next(request)


@pytest.mark.parametrize(
    ("middleware", "scope"), [(FilterLists(), "private"), (FilterMessages(), "private"), (CountCalls(), "public")]
)
async def test_lists_that_hooks_can_change_are_cached_only_for_their_caller(middleware: object, scope: str) -> None:
    outer = Server("outer")
    outer.mount(shop(middleware), prefix="shop")
    for mcp in (shop(middleware), outer):
        async with connect(mcp) as client:
            for method in ("tools/list", "resources/templates/list"):
                assert (await client.request(method, {}))["cacheScope"] == scope
