"""Tests of the server through a client in memory, without a port or process."""

import asyncio

from mcp_server_add_http import mcp

from millstream import Client


def test_streamed_calls_report_each_step() -> None:
    steps: list[str | None] = []

    async def talk() -> float:
        async with Client(mcp) as client:
            return await client.call(
                "multiply_numbers", {"a": 6, "b": 7, "stream": True}, result_type=float,
                progress=lambda done, of, text: steps.append(text),
            )  # fmt: skip

    assert asyncio.run(talk()) == 42
    assert steps == ["First number: 6", "Second number: 7", "Multiplying"]
