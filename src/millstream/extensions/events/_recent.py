"""The tool `get_recent_events`, for clients that an event wakes up without its data."""

from typing import Any

import msgspec

from millstream import Context, ToolError
from millstream._protocol.errors import ProtocolError
from millstream.extensions.events._catalog import EventCatalog, sees
from millstream.extensions.events._event_methods import Caller, Reader, check_admission, occurrence
from millstream.extensions.events._event_type import EventType
from millstream.extensions.events._feed import Notice
from millstream.hub import Hub

MAX_EVENTS = 50
_MAX_SCANNED = 200
"""Maximum events of one channel to search."""

_decode = msgspec.json.Decoder(dict[str, Any]).decode
_encode = msgspec.json.Encoder().encode


async def recent_events(
    catalog: EventCatalog,
    hub: Hub,
    caller: Caller,
    *,
    name: str = "",
    event_id: str = "",
    arguments: dict[str, Any] | None = None,
    limit: int = 5,
) -> list[dict[str, Any]]:
    """Return the latest events that a caller may see, newest first.

    Args:
        catalog: the event types.
        hub: the hub of the events.
        caller: the caller.
        name: only events of this type.
        event_id: only the event with this id.
        arguments: arguments of the subscription; requires `name`.
        limit: maximum number of events, from 1 to `MAX_EVENTS`.

    Raises:
        ToolError: the arguments are invalid.
    """
    if arguments and not name:
        raise ToolError("arguments require event_name, because they belong to one event type.")
    kinds = [kind for kind in catalog if sees(kind, caller.scopes) and name in ("", kind.name)]
    if name and not kinds:
        raise ToolError(f"There is no event {name[:200]!r}.")
    found: list[tuple[float, dict[str, Any]]] = []
    for kind in kinds:
        found += [
            (notice.at, _describe(kind, notice))
            for notice in await _newest_events(kind, hub, caller, arguments or {})
            if event_id in ("", notice.id)
        ]
    found.sort(key=lambda each: each[0], reverse=True)
    return [described for _, described in found[: min(max(1, limit), MAX_EVENTS)]]


async def _newest_events(kind: EventType, hub: Hub, caller: Caller, arguments: dict[str, Any]) -> list[Notice]:
    try:
        check_admission(hub, kind.name, caller.principal)
    except ProtocolError:
        return []
    try:
        reader = Reader(kind, kind.read_arguments(_encode(arguments)), caller.principal)
    except ProtocolError as error:
        raise ToolError(str(error)) from error
    events = await hub.history(kind.name, _MAX_SCANNED)
    notices = [Notice("event", each.id, each.offset, each.at, each.data or b"") for each in events]
    return [notice for notice in notices if reader.accepts(notice)]


def _describe(kind: EventType, notice: Notice) -> dict[str, Any]:
    return {**occurrence(kind.name, notice, None), "data": _decode(notice.data)}


def tool_of(catalog: EventCatalog, hub_of: Any) -> Any:
    """Return the function of the tool. ``hub_of()`` returns the hub of the running server."""

    async def get_recent_events(
        ctx: Context,
        event_name: str = "",
        event_id: str = "",
        arguments: dict[str, Any] | None = None,
        limit: int = 5,
    ) -> dict[str, Any]:
        """Return the newest events of this server with their data, newest first.

        Call it when an event of this server woke you up and you can't see its data.

        Args:
            event_name: only events of this type.
            event_id: only the event with this id.
            arguments: the arguments of your subscription, to see only what it receives; needs event_name.
            limit: how many events, 1 to 50.
        """
        principal = ctx.principal
        scopes = frozenset[str]() if principal is None else principal.scopes
        caller = Caller(principal, None if "*" in scopes else scopes)
        found = await recent_events(
            catalog, hub_of(), caller, name=event_name, event_id=event_id, arguments=arguments, limit=limit
        )
        return {"events": found}

    return get_recent_events
