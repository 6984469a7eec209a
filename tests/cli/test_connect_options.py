import asyncio
import sys
from contextlib import suppress

import pytest

from millstream._cli import connect_options
from patience import WAIT


async def test_commands_report_a_server_that_does_not_respond(monkeypatch: pytest.MonkeyPatch) -> None:
    printed: asyncio.Queue[str] = asyncio.Queue()
    monkeypatch.setattr(connect_options, "_SILENCE", 0)
    monkeypatch.setattr(connect_options, "print_line", printed.put_nowait)
    silent = f"{sys.executable} -c 'import sys; sys.stdin.read()'"

    async def use() -> None:
        async with connect_options.ConnectOptions(timeout=WAIT).client(silent):
            pass

    command = asyncio.create_task(use())
    assert silent in await asyncio.wait_for(printed.get(), WAIT)
    command.cancel()
    with suppress(asyncio.CancelledError):
        await command
