"""A server as part of another: what can be mounted, and what says why it cannot."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from millstream import Server, Settings


def server(name: str, **options: Any) -> Server:
    return Server(name, settings=Settings(), **options)


def buy() -> str:
    """Buy."""
    return "bought"


def test_a_server_cannot_be_mounted_on_itself_or_on_a_part_of_it() -> None:
    """A fixed defect: RecursionError."""
    outer, middle, inner = server("outer"), server("middle"), server("inner")
    outer.mount(middle, prefix="m")
    middle.mount(inner, prefix="i")
    for part, whole in ((outer, outer), (middle, outer), (inner, outer)):
        with pytest.raises(ValueError, match="it would be a part of itself"):
            part.mount(whole, prefix="x")
    inner.tool(buy)
    assert list(outer.registry.tools) == ["m_i_buy"]


def test_a_server_with_a_lifespan_is_not_mounted_because_it_would_not_run() -> None:
    """A fixed defect: the mounted functions saw the outer server's lifespan, and theirs never ran."""

    @asynccontextmanager
    async def database(_server: Server) -> AsyncGenerator[str, None]:
        yield "database"

    outer = server("outer")
    with pytest.raises(ValueError, match=r"'inner' has a lifespan, .* in the lifespan of 'outer'"):
        outer.mount(server("inner", lifespan=database))


def test_a_mount_whose_names_are_taken_leaves_nothing_behind() -> None:
    """Our choice: all of a server or none of it."""
    outer, inner = server("outer"), server("inner")
    outer.tool(name="stock_buy")(buy)
    inner.tool(name="sell")(buy)
    inner.tool(buy)
    with pytest.raises(ValueError, match="There is a tool 'stock_buy' already"):
        outer.mount(inner, prefix="stock")
    assert list(outer.registry.tools) == ["stock_buy"]
    inner.tool(name="look")(buy)
    assert list(outer.registry.tools) == ["stock_buy"]


def test_a_name_that_is_taken_where_a_server_is_mounted_is_refused_in_both() -> None:
    """What is registered later has the same rule as what was there when it was mounted."""
    outer, inner = server("outer"), server("inner")
    outer.mount(inner, prefix="stock")
    outer.tool(name="stock_buy")(buy)
    with pytest.raises(ValueError, match="There is a tool 'stock_buy' already"):
        inner.tool(buy)
    assert not inner.registry.tools


async def test_a_completer_that_was_registered_before_its_prompt_is_mounted_with_it() -> None:
    """A fixed defect: its name was prefixed as if it were the URI of a template."""
    outer, inner = server("outer"), server("inner")
    outer.mount(inner, prefix="stock")

    @inner.complete("review", argument="isbn")
    def complete(value: str, arguments: dict[str, str]) -> list[str]:
        return []

    @inner.prompt
    def review(isbn: str) -> str:
        return isbn

    async with outer.running():
        assert outer.registry.complete_from("stock_review", "isbn") is complete
