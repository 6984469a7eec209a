"""``millstream channel``: forward events of a server to a Claude Code session."""

import asyncio
from contextlib import AsyncExitStack, suppress
from typing import Annotated, Any

import msgspec
from cyclopts import Parameter

from millstream._app.server import Server
from millstream._cli.connect_options import (
    DEFAULTS,
    ConnectOptions,
    Target,
    pairs,
    with_client,
)
from millstream.client._client import Client
from millstream.client._errors import ClientError
from millstream.extensions.events._channel import INSTRUCTIONS, ClaudeChannel, select_events


def channel(
    target: Target,
    /,
    *,
    event: Annotated[
        list[str] | None,
        Parameter(metavar="NAME", help="Forward this event; repeat it."),
    ] = None,
    where: Annotated[
        list[str] | None,
        Parameter(metavar="NAME=VALUE", help="Forward only events with this argument; repeat it."),
    ] = None,
    options: ConnectOptions = DEFAULTS,
) -> None:
    """Forward events of a server to Claude Code, as a channel on standard input and output.

    Claude Code starts this command: add it to `.mcp.json`, and start Claude Code with
    `--dangerously-load-development-channels server:NAME`.

    **Examples**

    - `millstream channel https://shop.example/mcp --event order.paid --where customer=ada --auth KEY`
    """
    arguments = {name: _value(text) for name, text in pairs(where or [], "=", "--where must be NAME=VALUE").items()}

    async def work(client: Client) -> None:
        chosen = await select_events(client, event or [], arguments)
        name = client.server.name or target
        async with AsyncExitStack() as stack:
            events = [await stack.enter_async_context(each) for each in chosen]
            bridge = ClaudeChannel(events)
            server = Server("events", instructions=INSTRUCTIONS.format(name=name), extensions=[bridge])
            serving = asyncio.create_task(server.run_async("stdio"))
            forwarding = asyncio.create_task(bridge.forward())
            try:
                await asyncio.wait({serving, forwarding}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                forwarding.cancel()
            if serving.done():
                serving.result()
                return
            serving.cancel()
            with suppress(asyncio.CancelledError):
                await serving
            _raise_of(forwarding)

    with suppress(asyncio.CancelledError):
        with_client(target, options, work)


def _raise_of(task: "asyncio.Task[None]") -> None:
    """Raise the error that ended the forwarding."""
    try:
        task.result()
    except BaseExceptionGroup as group:
        raise next((each for each in group.exceptions if isinstance(each, ClientError)), group) from group


def _value(text: str) -> Any:
    """Return the value of JSON, or other text unchanged."""
    try:
        return msgspec.json.decode(text)
    except msgspec.DecodeError:
        return text
