"""Tests of both servers through clients in memory, without a port or process."""

import asyncio

from main import app
from servers import echo, math

from millstream import Client


def test_each_server_has_its_tool() -> None:
    async def talk() -> tuple[str, int]:
        async with Client(echo.mcp) as one, Client(math.mcp) as two:
            return await one.call("echo", message="hi", result_type=str), await two.call(
                "add_two", n=3, result_type=int
            )

    assert asyncio.run(talk()) == ("Echo: hi", 5)


def test_both_are_mounted() -> None:
    assert {"/echo", "/math"} <= {getattr(route, "path", "") for route in app.routes}
