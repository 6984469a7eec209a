"""``millstream watch``: print changes and log messages of a server as they happen."""

import asyncio
from contextlib import suppress
from enum import StrEnum
from functools import partial
from typing import Annotated

import msgspec
from cyclopts import Parameter
from cyclopts.validators import Number

from millstream._cli.commands.offers import check_resource
from millstream._cli.connect_options import (
    DEFAULTS,
    ConnectOptions,
    Target,
    with_client,
)
from millstream._cli.options import Json
from millstream._cli.signals import stop_without_reader
from millstream._cli.tables import one_line, print_json, print_text
from millstream.client._client import Client
from millstream.client._server_messages import Change, Notification

_SHOWN_AS_CHANGES = "list_changed", "resources/updated", "subscriptions/acknowledged"


class WatchLevel(StrEnum):
    debug = "debug"
    info = "info"
    notice = "notice"
    warning = "warning"
    error = "error"
    critical = "critical"
    alert = "alert"
    emergency = "emergency"


def watch(
    target: Target,
    /,
    *uris: Annotated[str, Parameter(name="URI", help="Resources to watch.")],
    count: Annotated[
        int,
        Parameter(
            name=("--count", "-c"),
            metavar="N",
            help="Stop after this many changes; 0 for no limit.",
            validator=Number(gte=0),
        ),
    ] = 0,
    level: Annotated[
        WatchLevel, Parameter(metavar="LEVEL", help="Minimum severity of log messages.")
    ] = WatchLevel.info,
    options: ConnectOptions = DEFAULTS,
    json: Json = False,
) -> None:
    """Print changes and log messages of a server, until Ctrl-C.

    Changes of the server's lists are always shown. `again` means that the connection was lost and restored, so changes
    may have been missed. With --json, each line is one object.

    **Examples**

    - `millstream watch http://127.0.0.1:8000/mcp`

    - `millstream watch http://127.0.0.1:8000/mcp shop://news --count 1`: wait for one change
    """

    async def work(client: Client) -> None:
        for uri in uris:
            await check_resource(client, uri)  # a missing resource would never change
        with stop_without_reader() as wrap:
            client.conversation.incoming.observer = wrap(partial(show_notification, as_json=json))
            async with client.watch(*uris, tools=True, prompts=True, resources=True) as changes:
                if not json:
                    name = one_line(client.server.name) or target
                    print_text(f"Watching {name} ({client.revision}, {client.transport}).")
                seen = 0
                async for change in changes:
                    show_change(change, as_json=json)
                    seen += 1
                    if seen == count:
                        return

    with suppress(asyncio.CancelledError):
        with_client(target, options, work, log_level=level)


def show_change(change: Change, *, as_json: bool) -> None:
    """Print one line for a change."""
    if as_json:
        print_json({"change": change.kind, **({"uri": change.uri} if change.uri else {})})
    else:
        print_text(f"changed\t{change.kind}\t{one_line(change.uri)}".rstrip())


def show_notification(notification: Notification, *, as_json: bool) -> None:
    """Print one line for a notification that isn't a change."""
    if notification.method.endswith(_SHOWN_AS_CHANGES):
        return
    try:
        params = msgspec.json.decode(notification.params)
    except (ValueError, RecursionError):
        return  # it can't be decoded
    if as_json:
        print_json({"method": notification.method, "params": params})
    elif notification.method == "notifications/message":
        print_text(f"log\t{one_line(str(params.get('level')))}\t{one_line(str(params.get('data')))}")
    else:
        print_text(f"{one_line(notification.method.removeprefix('notifications/'))}\t{one_line(str(params))}")
