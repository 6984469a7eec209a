"""What a program for another library guards is guarded here, or the program hears that it is not."""

from typing import Any

import pytest

from millstream.client._errors import Failure
from millstream.compat.fastmcp import FastMCP, Middleware, ToolError, standalone
from millstream.testing import connect


@pytest.mark.parametrize("option", ["auth", "security"])
def test_an_option_that_keeps_somebody_out_is_refused_and_not_passed_over(option: str) -> None:
    """Without the check that the program names, everybody could do what it guards."""
    mcp = standalone.FastMCP("guarded")
    guards: dict[str, Any] = {option: [lambda context: False]}
    for register in (mcp.tool(**guards), mcp.resource("a://{isbn}", **guards), mcp.prompt(**guards)):
        with pytest.raises(TypeError, match=option):
            register(lambda isbn: isbn)
    assert not mcp.engine.registry.tools


def test_sign_in_by_the_environment_is_refused_and_not_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """fastmcp 2 takes a provider from there; a server that ignored it would be open."""
    monkeypatch.setenv("FASTMCP_SERVER_AUTH", "fastmcp.server.auth.providers.jwt.JWTVerifier")
    with pytest.raises(ValueError, match="FASTMCP_SERVER_AUTH"):
        standalone.FastMCP("open")


class Guarding(Middleware):
    """Lets nobody do anything whose name has a word in it, and notes the rest."""

    def __init__(self, word: str) -> None:
        self.word = word
        self.passed: list[Any] = []

    async def on_call_tool(self, context: Any, call_next: Any) -> Any:
        return await self._guard(context.message.name, context, call_next)

    async def on_read_resource(self, context: Any, call_next: Any) -> Any:
        return await self._guard(context.message.uri, context, call_next)

    async def on_get_prompt(self, context: Any, call_next: Any) -> Any:
        return await self._guard(context.message.name, context, call_next)

    async def _guard(self, name: str, context: Any, call_next: Any) -> Any:
        if self.word in name:
            raise ToolError("not for you")
        self.passed.append(name)
        if context.message.arguments:
            asked = {**context.message.arguments, "isbn": context.message.arguments["isbn"].upper()}
            context = context.copy(message=type(context.message)(name, asked))
        return await call_next(context)


def shelf() -> standalone.FastMCP[Any]:
    """What is mounted."""
    mcp: standalone.FastMCP[Any] = standalone.FastMCP("shelf")

    @mcp.tool
    def find(isbn: str) -> str:
        return isbn

    @mcp.tool
    def wipe(isbn: str) -> str:
        return "wiped"

    @mcp.resource("book://{isbn}")
    def book(isbn: str) -> str:
        return isbn

    @mcp.resource("wipe://all")
    def everything() -> str:
        return "wiped"

    @mcp.prompt
    def review(isbn: str) -> str:
        return isbn

    @mcp.prompt
    def wiped(isbn: str) -> str:
        return isbn

    return mcp


@pytest.mark.parametrize("late", [False, True], ids=["before", "after"])
async def test_middleware_stands_in_front_of_what_is_mounted_too(late: bool) -> None:
    """In fastmcp a server's middleware is around all that its clients ask, however deep the item is mounted."""
    outer, guard = standalone.FastMCP("outer"), Guarding("wipe")
    middle: standalone.FastMCP[Any] = standalone.FastMCP("middle")
    if not late:
        outer.add_middleware(guard)
    middle.mount(shelf(), "old")
    outer.mount(middle, "deep")
    if late:
        outer.add_middleware(guard)
        outer.disable(names={"deep_old_wipe"})
        outer.enable(names={"deep_old_wipe"})
    async with connect(outer.engine) as client:
        assert (await client.call("deep_old_find", isbn="x")).text == "X"
        assert (await client.read("book://deep/old/x"))[0]["text"] == "x"
        assert (await client.prompt("deep_old_review", isbn="x"))[0]["content"]["text"] == "X"
        refused = await client.call("deep_old_wipe", isbn="x")
        assert (refused.is_error, refused.text) == (True, "not for you")
        for ask in (client.read("wipe://deep/old/all"), client.prompt("deep_old_wiped", isbn="x")):
            with pytest.raises(Failure, match="not for you"):
                await ask
    assert guard.passed == ["deep_old_find", "book://deep/old/x", "deep_old_review"]


@pytest.mark.parametrize("what", ["tool", "prompt", "resource"])
def test_an_option_that_nobody_has_is_refused_with_the_one_that_was_probably_meant(what: str) -> None:
    """By the words that our own decorators have, without the names of our classes' insides."""
    mcp = FastMCP("shop")
    decorate = mcp.resource("shop://books", enabeld=True) if what == "resource" else getattr(mcp, what)(enabeld=True)
    with pytest.raises(TypeError, match="has no option 'enabeld'; did you mean 'enabled'"):
        decorate(lambda: "")
