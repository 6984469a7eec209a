from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from auth_world import run_guarded
from cases import for_each
from issuer_world import AUDIENCE, ISSUER, claims, key_set, token
from millstream import Context, Principal, Server, Settings, SyncContext, auth
from millstream.testing import connect

KEY = token(claims(scope="docs"))


def server(name: str, **options: Any) -> Server:
    return Server(name, settings=Settings(), **options)


def buy() -> str:
    """Buy."""
    return "bought"


def test_servers_cannot_be_mounted_on_themselves_or_their_children() -> None:
    outer, middle, inner = server("outer"), server("middle"), server("inner")
    outer.mount(middle, prefix="m")
    middle.mount(inner, prefix="i")
    for part, whole in ((outer, outer), (middle, outer), (inner, outer)):
        with pytest.raises(ValueError, match="it would contain itself"):
            part.mount(whole, prefix="x")
    inner.tool(buy)
    assert list(outer.registry.tools) == ["m_i_buy"]


class Places:
    """Servers whose lifespans record when they open and close, and whose items return the lifespan's value."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    def place(self, name: str, *, lifespan: bool = True) -> Server:
        """Return a server with one function of every kind."""
        mcp = server(name, lifespan=self.opened if lifespan else None)

        @mcp.tool
        async def tell(ctx: Context) -> str:
            return str(ctx.lifespan)

        @mcp.tool
        def tell_in_thread(ctx: SyncContext) -> str:
            return str(ctx.lifespan)

        @mcp.prompt
        async def prompt(ctx: Context) -> str:
            return str(ctx.lifespan)

        @mcp.resource("place://here")
        async def here(ctx: Context) -> str:
            return str(ctx.lifespan)

        return mcp

    @asynccontextmanager
    async def opened(self, mcp: Server) -> AsyncGenerator[str, None]:
        """A lifespan that yields the name of its server."""
        if mcp.name == "broken":
            raise OSError("no database")
        self.seen.append(f"+{mcp.name}")
        try:
            yield mcp.name
        finally:
            self.seen.append(f"-{mcp.name}")


async def test_mounted_lifespan_runs_inside_the_outer_lifespan() -> None:
    places = Places()
    outer, middle, inner = places.place("outer"), places.place("middle"), places.place("inner")
    plain, last = places.place("plain", lifespan=False), places.place("last")
    outer.mount(middle, prefix="m")
    middle.mount(inner, prefix="i")
    middle.mount(plain, prefix="p")
    outer.mount(last, prefix="l")
    outer.mount(last, prefix="again")
    async with connect(outer) as client:
        assert places.seen == ["+outer", "+middle", "+inner", "+last"]
        told = {"": "outer", "m_": "middle", "m_i_": "inner", "m_p_": "middle", "l_": "last", "again_": "last"}
        for prefix, name in told.items():
            assert (await client.call(f"{prefix}tell")).text == name
            assert (await client.call(f"{prefix}tell_in_thread")).text == name
            assert (await client.prompt(f"{prefix}prompt")).text == name
            path = "".join(f"{part}/" for part in prefix.split("_")[:-1])
            assert (await client.read(f"place://{path}here"))[0].text == name
    assert places.seen[4:] == ["-last", "-inner", "-middle", "-outer"]
    async with inner.running():
        assert places.seen[8:] == ["+inner"]


async def test_failing_mounted_lifespan_prevents_startup() -> None:
    places = Places()
    outer = places.place("outer")
    outer.mount(places.place("first"), prefix="f")
    outer.mount(places.place("broken"), prefix="b")
    with pytest.raises(OSError, match="no database"):
        await outer.start()
    assert places.seen == ["+outer", "+first", "-first", "-outer"]


async def test_servers_with_a_lifespan_are_mounted_before_startup() -> None:
    places = Places()

    @asynccontextmanager
    async def mounting(mcp: Server) -> AsyncGenerator[None, None]:
        mcp.mount(places.place("inner"), prefix="i")
        yield

    outer, middle = server("outer", lifespan=mounting), server("middle")
    outer.mount(middle)
    async with connect(outer) as client:
        assert (await client.call("i_tell")).text == "inner"
        middle.mount(places.place("plain", lifespan=False), prefix="p")
        assert (await client.call("p_tell")).text == "None"
        with pytest.raises(ValueError, match="'late' has a lifespan, but 'middle' is already running"):
            middle.mount(places.place("late"), prefix="l")
        outside = server("outside")
        outside.mount(places.place("late"))
        with pytest.raises(ValueError, match="'outside' has a lifespan"):
            middle.mount(outside, prefix="l")
    assert places.seen == ["+inner", "-inner"]


def test_failed_mount_leaves_nothing_behind() -> None:
    outer, inner = server("outer"), server("inner")
    outer.tool(name="stock_buy")(buy)
    inner.tool(name="sell")(buy)
    inner.tool(buy)
    with pytest.raises(ValueError, match="The tool 'stock_buy' already exists"):
        outer.mount(inner, prefix="stock")
    assert list(outer.registry.tools) == ["stock_buy"]
    inner.tool(name="look")(buy)
    assert list(outer.registry.tools) == ["stock_buy"]


def test_names_taken_on_the_outer_server_are_rejected_on_both() -> None:
    outer, inner = server("outer"), server("inner")
    outer.mount(inner, prefix="stock")
    outer.tool(name="stock_buy")(buy)
    with pytest.raises(ValueError, match="The tool 'stock_buy' already exists"):
        inner.tool(buy)
    assert not inner.registry.tools


async def test_completers_registered_before_their_prompt_are_mounted() -> None:
    outer, inner = server("outer"), server("inner")
    outer.mount(inner, prefix="stock")

    @inner.complete("review", argument="isbn")
    def complete(value: str, arguments: dict[str, str]) -> list[str]:
        return []

    @inner.prompt
    def review(isbn: str) -> str:
        return isbn

    async with outer.running():
        assert ("stock_review", "isbn") in outer.registry.completers


def long_server(length: int, count: int = 1) -> Server:
    """Return a server whose tools have names of a given length."""
    part = server("part")
    for each in range(count):
        part.tool(name=f"{each}".rjust(length, "a"))(buy)
    return part


@for_each("prefix", ["my shop", "a,b", "ü", "a/b", "a.b", "a" * 60])
async def test_prefixes_that_make_invalid_tool_names_are_logged(prefix: str, caplog: pytest.LogCaptureFixture) -> None:
    outer = server("outer")
    outer.mount(long_server(5, 3), prefix=prefix)
    caplog.clear()
    async with outer.running():
        (warning,) = [each.getMessage() for each in caplog.records if each.levelname == "WARNING"]
    what = "use 1 to 64 ASCII letters, digits, underscores, and hyphens, and begin with a letter"
    assert warning.startswith(f"The tool name '{prefix}_aaaa0', and 2 more, won't work with every client: {what}")


async def test_tools_added_after_mounting_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    part, middle, outer = server("part"), server("middle"), server("outer")
    middle.mount(part, prefix="b" * 10)
    outer.mount(middle, prefix="c" * 10)
    part.tool(name="a" * 42)(buy)
    part.tool(name="a" * 43)(buy)
    async with outer.running():
        assert f"'{'c' * 10}_{'b' * 10}_{'a' * 43}' won't work" in caplog.text


async def test_valid_names_do_not_warn_and_invalid_ones_warn_once(caplog: pytest.LogCaptureFixture) -> None:
    part, outer = long_server(59), server("outer")
    outer.mount(part, prefix="shop")
    outer.mount(long_server(64))
    async with outer.running():
        assert "won't work" not in caplog.text
    odd = server("odd")
    with pytest.warns(UserWarning, match="'a b' doesn't work"):
        odd.tool(name="a b")(buy)
    outer.mount(odd, prefix="odd")
    prompts = server("prompts")
    prompts.prompt(name="a" * 128)(buy)
    outer.mount(prompts, prefix="long")


async def test_mounted_items_get_the_conditions_of_their_mount() -> None:
    words, office = server("words"), server("office")
    words.tool(buy, tags=["own"])
    words.tool(buy, name="sell", scopes=["sales"], limit="2/minute")
    words.prompt(lambda: "Write.", name="write")
    words.resource("words://{name}", name="word")(lambda name: name)
    office.tool(buy)
    office.mount(words, prefix="w", scopes=["docs"], groups=["staff"], tags=["mounted"], limit="9/minute")
    words.tool(buy, name="later")
    assert words.registry.tools["buy"].scopes == frozenset()
    for tool, scopes, limit in (("buy", {"docs"}, "9"), ("sell", {"docs", "sales"}, "2"), ("later", {"docs"}, "9")):
        found = office.registry.tools[f"w_{tool}"]
        assert (found.scopes, found.limit) == (scopes, f"{limit}/minute")
        assert found.tags >= {"mounted"}
    staff, intern = (Principal("a", claims={"groups": [group]}) for group in ("staff", "interns"))
    for kind in ("tools", "prompts", "templates"):
        items = {name: item for name, item in getattr(office.registry, kind).items() if name.startswith("w")}
        assert items
        for item in items.values():
            assert item.scopes >= {"docs"}
            assert [item.visible(each) for each in (staff, intern, None)] == [True, False, False]
    assert office.registry.tools["buy"].visible is None
    for wrong, what in (
        ({"scope": ["a"]}, "no option 'scope'"),
        ({"groups": "staff"}, "a list"),
        ({"limit": "9"}, "unit"),
    ):
        with pytest.raises(TypeError, match=what):
            server("other").mount(server("inner"), **wrong)


async def test_callers_without_the_conditions_of_a_mount_cannot_use_its_items() -> None:
    method = auth.jwt(issuer=ISSUER, audience=AUDIENCE, jwks=key_set())
    words, office = server("words"), server("office", auth=method, serve="all")
    words.tool(buy)
    words.prompt(lambda name: f"Write {name}.", name="write")
    words.resource("words://{name}", name="word")(lambda name: name)
    words.complete("write", argument="name")(lambda value, arguments: ["secret"])
    office.mount(words, prefix="a", scopes=["docs"])
    office.mount(words, prefix="b", scopes=["admin"])
    office.mount(words, prefix="c", groups=["staff"])
    async with run_guarded(office) as world:
        listed = await world.modern(KEY, "tools/list")
        assert [each["name"] for each in listed.message["result"]["tools"]] == ["a_buy"]
        for prefix, allowed in (("a", True), ("b", False), ("c", False)):
            calls = [
                await world.call(KEY, f"{prefix}_buy"),
                await world.ask(KEY, "POST", f"/tools/{prefix}_buy", b"{}", content_type="application/json"),
                await world.modern(
                    KEY, "prompts/get", {"name": f"{prefix}_write", "arguments": {"name": "x"}}, f"{prefix}_write"
                ),
                await world.modern(KEY, "resources/read", {"uri": f"words://{prefix}/x"}, f"words://{prefix}/x"),
                await world.modern(
                    KEY,
                    "completion/complete",
                    {
                        "ref": {"type": "ref/prompt", "name": f"{prefix}_write"},
                        "argument": {"name": "name", "value": ""},
                    },
                ),
            ]
            assert [each.status == 200 and "error" not in each.message for each in calls] == [allowed] * 5
