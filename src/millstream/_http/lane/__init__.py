"""The lane: uvicorn's httptools protocol class, made a guard first and a short cut second.

`Lane` is what an ASGI application carries as ``__millstream_lane__`` so that the protocol class finds its routes,
limits and host policy. `load_lane` gives the class, or the reason why plain ASGI has to do. Nothing is imported from
uvicorn until then: a program that serves stdio never loads an HTTP server.
"""

import asyncio
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import NamedTuple

from millstream._http.hosts import HostPolicy
from millstream._http.limits import HttpLimits
from millstream._http.message import Handler

CLASS_NAME = "millstream._http.lane.usual:UsualProtocol"
"""For ``uvicorn.Config(http=…)`` with workers, which need the class by name."""

ATTRIBUTE = "__millstream_lane__"
"""Where an application shows its lane."""

GUARD_ONLY = (
    "time limits for headers and stalled writes",
    "caps on header count and size, on URLs and on pipelined requests",
    "exactly one Host (health probes apart)",
    "caps on connections",
    "trailers kept apart from headers",
)
"""What plain ASGI cannot do; the start-up line lists it."""
SOCKETS_ONLY = (
    "caps on unfinished WebSocket messages, their time and their fragments, and on frames handled at a time"
    " (uvicorn has them with --ws millstream._http.websocket.uvicorn:WebSocketProtocol)"
)
"""What other WebSocket protocol classes than ours cannot do."""


class Lane:
    """The short cut of one application.

    `lookup` takes method and path as they stand on the wire (no query, no percent sign) and gives the handler of a hot
    endpoint, or `None` for everything that goes through ASGI.
    """

    __slots__ = ("by_line", "hot", "limits", "lookup", "policy")

    def __init__(
        self,
        lookup: Callable[[bytes, bytes], Handler | None],
        *,
        limits: HttpLimits,
        policy: HostPolicy,
        hot: Mapping[tuple[bytes, bytes], tuple[Handler, str, str]] | None = None,
    ) -> None:
        self.lookup = lookup
        self.hot = hot or {}
        """(method, target) without a query -> handler, and both as text: found without a Python call."""
        self.by_line = {b"%b %b HTTP/1.1" % key: found for key, found in self.hot.items()}
        """The same by the whole first line."""
        self.limits = limits
        self.policy = policy


class Loaded(NamedTuple):
    """The protocol class, or the reason why there is none."""

    protocol: type[asyncio.Protocol] | None
    reason: str = ""


def load_lane() -> Loaded:
    """Import the protocol class and see that the uvicorn beside us still is the one it extends."""
    try:
        reason: str = import_module("millstream._http.lane.fit").incompatibility()
        module = import_module("millstream._http.lane.usual")
    except (ImportError, AttributeError) as exc:
        return Loaded(None, f"the HTTP protocol class cannot be loaded: {exc}")
    return Loaded(None, reason) if reason else Loaded(module.UsualProtocol)
