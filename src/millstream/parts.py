"""Write a part of your own: a feature that plugs into a server, with items from other sources than functions.

`Host` is the running server as a part extends it: routes, methods, capabilities, gates, and periodic work. `Tool`,
`Prompt`, `Resource`, and `Template` are built from an `ItemSource`, and their functions receive the `Call`.

Example:
    >>> class Health:
    ...     name, needs = "health-page", ()
    ...
    ...     async def open(self, host: Host) -> None:
    ...         host.routes.add("/up", Route({"GET": self.show}, public=True))
    ...
    ...     async def close(self) -> None: ...
    ...
    ...     async def show(self, request: HttpRequest) -> Response:
    ...         return Response(b"{}", 200, header_lines(content_type="application/json"))
    >>> mcp = Server("shop", parts=[Health()])
"""

from millstream._config import Seconds
from millstream._http.message import Handler, HttpRequest, Response, header_lines
from millstream._limits import Limiter, Rate
from millstream._parts import Host, Part, Route
from millstream._protocol.sse import encode_event
from millstream._server.calls.call import Call
from millstream._server.features import Read, Run
from millstream._server.features.resources import Prompt, Resource, Template
from millstream._server.features.sources import ItemSource
from millstream._server.features.tools import Tool
from millstream._server.functions.plan import ArgumentError
from millstream._server.functions.problems import describe_problems
from millstream._tasks import Tasks, cancel_all

__all__ = [
    "ArgumentError",
    "Call",
    "Handler",
    "Host",
    "HttpRequest",
    "ItemSource",
    "Limiter",
    "Part",
    "Prompt",
    "Rate",
    "Read",
    "Resource",
    "Response",
    "Route",
    "Run",
    "Seconds",
    "Tasks",
    "Template",
    "Tool",
    "cancel_all",
    "describe_problems",
    "encode_event",
    "header_lines",
]
