"""Helpers for tests of watched connections: servers with a session, and short waits."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from client.misbehaving_servers import DONE, MisbehavingServer, ReceivedRequest, with_handshake
from millstream.client import _watches as watching
from millstream.client._server_messages import Change
from millstream.client._transports import http
from millstream.client._watches import Changes

AGAIN = Change("again")
NOTE = b'{"jsonrpc":"2.0","method":"notifications/tools/list_changed"}'
Behave = Callable[[ReceivedRequest], Awaitable[None]]


def set_waits(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    for module in (watching, http):
        monkeypatch.setattr(module, "_FIRST_WAIT", seconds)
        monkeypatch.setattr(module, "_LONGEST_WAIT", seconds)


async def wait_until(condition: Callable[[], object]) -> None:
    while not condition():  # noqa: ASYNC110  other tasks change it
        await asyncio.sleep(0.01)


async def until_other_than_again(changes: Changes) -> Change:
    """Return the next change that isn't `again`, which may be reported twice."""
    while (change := await anext(changes)) == AGAIN:
        pass
    return change


async def block_forever() -> Any:
    await asyncio.get_running_loop().create_future()


def session(streams: Behave, others: Behave | None = None) -> Behave:
    """Return a server with sessions that runs `streams` for each GET, and `others` for requests after the handshake."""

    async def calls(asked: ReceivedRequest) -> None:
        await asked.result(DONE if asked.method == "tools/call" else {})

    usual = with_handshake(others or calls, session="s")

    return lambda asked: (streams if asked.verb == "GET" else usual)(asked)


def count_handshakes(server: MisbehavingServer) -> int:
    return [asked.method for asked in server.requests].count("initialize")


def count_gets(server: MisbehavingServer) -> int:
    return [asked.verb for asked in server.requests].count("GET")


def count_subscriptions(server: MisbehavingServer) -> int:
    return [asked.method for asked in server.requests].count("resources/subscribe")
