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

from millstream._http.message import Handler, HttpRequest, Response, header_lines, query_value, refusal
from millstream._parts import Host, Part, Route
from millstream._server.calls.call import Call, check_scopes, granted_scopes
from millstream._server.calls.services import ServerChange, Services
from millstream._server.features import Hooks, Run
from millstream._server.features.registry import RegisteredExtension
from millstream._server.features.resources import Pattern, Prompt, Readable, Resource, Template
from millstream._server.features.sources import Item, ItemSource, Read, require_scopes
from millstream._server.features.tools import TaskRules, Tool
from millstream._server.functions.engine import encode_result
from millstream._server.functions.plan import ArgumentError
from millstream._server.pool import Pool

__all__ = [
    "ArgumentError",
    "Call",
    "Handler",
    "Hooks",
    "Host",
    "HttpRequest",
    "Item",
    "ItemSource",
    "Part",
    "Pattern",
    "Pool",
    "Prompt",
    "Read",
    "Readable",
    "RegisteredExtension",
    "Resource",
    "Response",
    "Route",
    "Run",
    "ServerChange",
    "Services",
    "TaskRules",
    "Template",
    "Tool",
    "check_scopes",
    "encode_result",
    "granted_scopes",
    "header_lines",
    "query_value",
    "refusal",
    "require_scopes",
]
