import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Annotated, Any, Self

import fastapi
import pytest

from cases import for_each
from millstream import Context, Depends, Server, SyncContext, ToolError
from millstream.protocol import NEWEST
from millstream.testing import connect
from patience import WAIT


class Shop:
    """The class behind the dependencies. It records their lifetime."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    async def opened(self) -> AsyncIterator[str]:
        self.notes.append("opened")
        try:
            yield "shop"
            self.notes.append("committed")
        except BaseException as exc:
            self.notes.append(f"rolled back: {type(exc).__name__}")
            raise
        finally:
            self.notes.append("closed")


@pytest.fixture
def shop() -> Shop:
    return Shop()


async def test_dependencies_are_hidden_and_resolved_once_per_call(shop: Shop) -> None:
    mcp = Server("shop")

    async def shelf(opened: Annotated[str, Depends(shop.opened)]) -> str:
        return f"shelf of the {opened}"

    @mcp.tool
    async def find(isbn: str, place: Annotated[str, Depends(shelf)], opened: str = Depends(shop.opened)) -> str:
        shop.notes.append("called")
        return f"{isbn}: {place}, {opened}"

    async with connect(mcp) as client:
        (tool,) = (await client.request("tools/list"))["tools"]
        assert list(tool["inputSchema"]["properties"]) == ["isbn"]
        assert (await client.call("find", isbn="1")).text == "1: shelf of the shop, shop"
        assert shop.notes == ["opened", "called", "committed", "closed"]
        await client.call("find", isbn="2")
        assert shop.notes.count("opened") == 2
        refused = await client.call("find", isbn="3", opened="mine", raise_on_error=False)
        assert "opened" in refused.text
        assert refused.is_error


async def test_errors_are_raised_at_the_yield_and_cannot_be_swallowed(shop: Shop) -> None:
    mcp = Server("shop")

    async def silent() -> AsyncIterator[None]:
        with contextlib.suppress(ToolError):
            yield

    @mcp.tool
    async def fail(_: Annotated[str, Depends(shop.opened)], quiet: None = Depends(silent)) -> str:
        raise ToolError("sold out")

    async with connect(mcp) as client:
        result = await client.call("fail", raise_on_error=False)
    assert (result.text, result.is_error) == ("sold out", True)
    assert shop.notes == ["opened", "rolled back: ToolError", "closed"]


async def test_error_on_close_fails_the_call_and_closes_the_other_dependencies(shop: Shop) -> None:
    mcp = Server("shop")

    async def commits() -> AsyncIterator[None]:
        yield
        raise ToolError("the commit failed")

    @mcp.tool
    async def order(_: Annotated[str, Depends(shop.opened)], commit: None = Depends(commits)) -> str:
        return "ordered"

    async with connect(mcp) as client:
        result = await client.call("order", raise_on_error=False)
    assert (result.text, result.is_error) == ("the commit failed", True)
    assert shop.notes[-1] == "closed"


async def test_canceled_calls_close_their_dependencies(shop: Shop) -> None:
    mcp, waits = Server("shop"), asyncio.Event()

    @mcp.tool(timeout=0.01)
    async def wait(_: Annotated[str, Depends(shop.opened)]) -> str:
        await waits.wait()
        return "never"

    async with connect(mcp) as client:
        assert (await client.call("wait", raise_on_error=False)).is_error
    assert shop.notes == ["opened", "rolled back: CancelledError", "closed"]


async def test_dependency_opening_in_a_thread_is_closed_after_cancellation() -> None:
    mcp, began, go, closed = Server("shop"), threading.Event(), threading.Event(), threading.Event()

    def slow() -> Iterator[str]:
        began.set()
        go.wait(WAIT)
        try:
            yield "late"
        finally:
            closed.set()

    @mcp.tool
    async def wait(_: Annotated[str, Depends(slow)]) -> str:
        return "never"

    async with connect(mcp) as client:
        pending = asyncio.create_task(client.call("wait"))
        assert await asyncio.to_thread(began.wait, WAIT)
        pending.cancel()
        await asyncio.wait((pending,))
        go.set()
        assert await asyncio.to_thread(closed.wait, WAIT)


async def test_context_variables_of_a_dependency_are_visible_until_the_call_ends() -> None:
    mcp, current, closed = Server("shop"), ContextVar("current", default="nobody"), list[str]()

    def bind() -> Iterator[None]:
        token = current.set("ada")
        yield
        closed.append(current.get())
        current.reset(token)

    async def read(_: Annotated[None, Depends(bind)]) -> str:
        return current.get()

    def read_in_a_thread(_: Annotated[None, Depends(bind)]) -> str:
        return current.get()

    @mcp.tool
    async def read_without() -> str:
        return current.get()

    mcp.tool(read)
    mcp.tool(read_in_a_thread)
    async with connect(mcp) as client:
        for name in ("read", "read_in_a_thread"):
            assert (await client.call(name)).text == "ada"
            assert (await client.call("read_without")).text == "nobody"
    assert closed == ["ada", "ada"]


class Session:
    """A class that is a context manager."""

    def __init__(self, ctx: SyncContext) -> None:
        self.client, self.thread, self.open = ctx.client.name, threading.get_ident(), False

    def __enter__(self) -> Self:
        self.open = True
        return self

    def __exit__(self, *exc: object) -> None:
        self.open = False


async def test_functions_classes_and_context_managers_work_as_dependencies() -> None:
    mcp, sessions = Server("shop"), list[Session]()

    @contextlib.contextmanager
    def managed() -> Iterator[str]:
        yield "managed"

    @contextlib.asynccontextmanager
    async def managed_async(ctx: Context) -> AsyncIterator[str]:
        yield f"managed for {ctx.client.name}"

    def plain() -> int:
        return threading.get_ident()

    def at_once(ctx: Context) -> int:
        return threading.get_ident()

    def told(session: Session, texts: tuple[str, ...], threads: tuple[int, ...]) -> str:
        sessions.append(session)
        here = threading.get_ident()
        loop = threads[1]
        return f"{session.open} {session.client} {texts} {threads[0] != loop} {here == loop}"

    @mcp.tool
    async def in_loop(
        session: Annotated[Session, Depends(Session)], a: str = Depends(managed), b: str = Depends(managed_async),
        c: int = Depends(plain), d: int = Depends(at_once, thread=False),
    ) -> str:  # fmt: skip
        return told(session, (a, b), (c, d))

    @mcp.tool
    def in_thread(
        ctx: SyncContext, *, session: Annotated[Session, Depends(Session)], a: str = Depends(managed),
        b: str = Depends(managed_async), c: int = Depends(plain), d: int = Depends(at_once, thread=False),
    ) -> str:  # fmt: skip
        return told(session, (a, b), (c, d))

    @mcp.tool
    async def streamed(
        ctx: Context, session: Annotated[Session, Depends(Session)], a: str = Depends(managed),
        b: str = Depends(managed_async), c: int = Depends(plain), d: int = Depends(at_once, thread=False),
    ) -> AsyncIterator[str]:  # fmt: skip
        yield "first"
        yield told(session, (a, b), (c, d))

    async with connect(mcp) as client:
        for name in ("in_loop", "in_thread", "streamed"):
            text = (await client.call(name)).text
            assert text == f"True test ('managed', 'managed for test') True {name != 'in_thread'}"
    assert [each.open for each in sessions] == [False] * 3


async def test_prompts_and_resources_can_have_dependencies(shop: Shop) -> None:
    mcp = Server("shop")
    Opened = Annotated[str, Depends(shop.opened)]  # noqa: N806  a type

    @mcp.resource("shop://sales")
    async def sales(opened: Opened) -> str:
        return opened

    @mcp.resource("shop://{isbn}")
    async def book(opened: Opened, isbn: str) -> str:
        return opened + isbn

    @mcp.prompt
    def advise(topic: str, opened: Opened) -> str:
        return opened + topic

    @mcp.complete("advise", "topic")
    async def topics(value: str, arguments: dict[str, str], opened: Opened) -> list[str]:
        return [opened + value]

    @mcp.complete("shop://{isbn}", "isbn")
    def isbns(value: str, arguments: dict[str, str], opened: Opened) -> list[str]:
        return [opened + value]

    @mcp.tool(input_schema={"type": "object", "properties": {"x": {"type": "integer"}}})
    async def raw(arguments: dict[str, Any], opened: Opened) -> str:
        return f"{opened}{arguments['x']}"

    async with connect(mcp) as client:
        assert (await client.read("shop://sales"))[0].text == "shop"
        assert (await client.read("shop://7"))[0].text == "shop7"
        assert (await client.prompt("advise", topic="x")).text == "shopx"
        assert (await client.call("raw", x=1)).text == "shop1"
        for ref, name in (
            ({"type": "ref/prompt", "name": "advise"}, "topic"),
            ({"type": "ref/resource", "uri": "shop://{isbn}"}, "isbn"),
        ):
            found = await client.request("completion/complete", {"ref": ref, "argument": {"name": name, "value": "y"}})
            assert found["completion"]["values"] == ["shopy"]
    assert shop.notes.count("closed") == shop.notes.count("opened") == 6


@dataclass
class Copies:
    """The form of a question."""

    copies: int


@pytest.mark.parametrize("revision", [NEWEST.date, "2025-11-25"])
async def test_call_that_asks_opens_its_dependencies_once(shop: Shop, revision: str) -> None:
    mcp = Server("shop")

    @mcp.tool
    async def order(ctx: Context, _: Annotated[str, Depends(shop.opened)]) -> str:
        answer = await ctx.elicit("How many?", Copies)
        return f"{answer.copies} ordered"

    async with connect(mcp, revision=revision, elicit=lambda question: {"copies": 3}) as client:
        assert (await client.call("order")).text == "3 ordered"
    assert shop.notes == ["opened", "committed", "closed"]


async def test_dependency_overrides_apply_to_mounted_servers(shop: Shop) -> None:
    inner, outer = Server("inner"), Server("outer")

    @inner.tool
    async def find(opened: Annotated[str, Depends(shop.opened)]) -> str:
        return opened

    outer.mount(inner, prefix="in")

    def fake() -> str:
        return "fake"

    outer.dependency_overrides[shop.opened] = fake
    async with connect(outer) as client, connect(inner) as other:
        assert (await client.call("in_find")).text == "fake"
        del outer.dependency_overrides[shop.opened]
        inner.dependency_overrides[shop.opened] = lambda: "inner"
        assert (await client.call("in_find")).text == "inner"
        assert (await other.call("find")).text == "inner"
    assert shop.notes == []


def needs_argument(isbn: str) -> str:
    return isbn


def in_thread_with_context(ctx: Context) -> str:
    return ctx.revision


async def in_loop_with_sync_context(ctx: SyncContext) -> str:
    return ctx.revision


def circle(value: "Annotated[int, Depends(circle)]") -> int:
    return value


@for_each(
    ("function", "said"),
    [
        (needs_argument, "the parameter 'isbn' of this dependency has no value"),
        (in_thread_with_context, "thread=False"),
        (in_loop_with_sync_context, "Annotate ctx: Context"),
        (circle, "depends on itself"),
        ("shop", "pass the function itself"),
    ],
)
def test_unresolvable_dependencies_are_rejected_at_registration(function: Any, said: str) -> None:
    mcp = Server("shop")
    with pytest.raises(TypeError, match=said):

        @mcp.tool
        async def find(value: Any = Depends(function)) -> str:
            return str(value)


@for_each(
    ("kind", "instead"), [("Query", "from millstream import Field"), ("Body", "Field"), ("Header", "Read ctx.headers")]
)
def test_fastapi_parameters_are_rejected(kind: str, instead: str) -> None:
    """Their constraints wouldn't apply, and clients could send a header's value as an argument."""
    mark: Any = getattr(fastapi.params, kind)(default="a")
    mcp = Server("shop")

    def by_default(word: str = mark) -> str:
        return word

    def annotated(word: Annotated[str, mark] = "a") -> str:
        return word

    for function in (by_default, annotated):
        with pytest.raises(TypeError, match=rf"word: a tool can't use FastAPI's {kind}\. .*{instead}"):
            mcp.tool(function)


def test_depends_from_another_library_is_rejected() -> None:
    """Otherwise a client could send the value that it should fill in."""
    mcp, foreign = Server("shop"), type("Depends", (), {"__module__": "fastapi.params"})()

    def by_default(shop: Any = foreign) -> str:
        return str(shop)

    def annotated(shop: Annotated[int, foreign]) -> str:
        return str(shop)

    for function in (by_default, annotated):
        with pytest.raises(
            TypeError, match=r"shop: this Depends is from fastapi\. Write: from millstream import Depends"
        ):
            mcp.tool(function)


async def test_dependency_inside_another_value_or_type_stops_the_registration() -> None:
    def find() -> str:
        return "ada"

    @dataclass
    class Order:
        user: Annotated[str, Depends(find)]

    @dataclass
    class Bill:
        user: str = Depends(find)

    async def in_list(users: Any = [Depends(find)]) -> None: ...  # noqa: B006

    async def in_dict(users: Any = {"x": [Depends(find)]}) -> None: ...  # noqa: B006

    async def optional(user: Annotated[str, Depends(find)] | None = None) -> None: ...

    async def items(users: list[Annotated[str, Depends(find)]]) -> None: ...

    async def in_class(order: Order) -> None: ...

    async def in_class_default(bills: list[Bill]) -> None: ...

    mcp = Server("shop")
    for function in (in_list, in_dict, optional, items, in_class, in_class_default):
        for register in (mcp.add_tool, mcp.prompt):
            with pytest.raises(TypeError, match=r"parameter '\w+': clients could send what Depends fills in"):
                register(function)
