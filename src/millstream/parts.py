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

from millstream._config import Cap, RateText, Seconds
from millstream._http.asgi import HostedApplication
from millstream._http.message import Handler, HttpRequest, Response, Sink, header_lines, query_value, refusal
from millstream._limits import Limiter, Rate
from millstream._parts import Host, Part, Route
from millstream._protocol.sse import encode_event
from millstream._recent import Recent
from millstream._server.calls.call import Call, check_scopes, granted_scopes
from millstream._server.calls.context import call_binding
from millstream._server.calls.pending_questions import ClientRefusal
from millstream._server.calls.services import ServerChange, Services
from millstream._server.features import Hooks, Read, Run
from millstream._server.features.registry import RegisteredExtension, sees
from millstream._server.features.resources import Pattern, Prompt, Readable, Resource, Template
from millstream._server.features.sources import Item, ItemSource, require_scopes
from millstream._server.features.tools import NAMES_THAT_WORK, TaskRules, Tool, check_tool_name, works_everywhere
from millstream._server.functions.engine import encode_result
from millstream._server.functions.plan import ArgumentError
from millstream._server.functions.problems import describe_problems
from millstream._server.handlers import take_rounds
from millstream._server.peers import PartMessage
from millstream._server.pool import Pool
from millstream._tasks import SingleFlight, Tasks, cancel_all, has_failed, is_canceled, retry_delay

__all__ = [
    "NAMES_THAT_WORK",
    "ArgumentError",
    "Call",
    "Cap",
    "ClientRefusal",
    "Handler",
    "Hooks",
    "Host",
    "HostedApplication",
    "HttpRequest",
    "Item",
    "ItemSource",
    "Limiter",
    "Part",
    "PartMessage",
    "Pattern",
    "Pool",
    "Prompt",
    "Rate",
    "RateText",
    "Read",
    "Readable",
    "Recent",
    "RegisteredExtension",
    "Resource",
    "Response",
    "Route",
    "Run",
    "Seconds",
    "ServerChange",
    "Services",
    "SingleFlight",
    "Sink",
    "TaskRules",
    "Tasks",
    "Template",
    "Tool",
    "call_binding",
    "cancel_all",
    "check_scopes",
    "check_tool_name",
    "describe_problems",
    "encode_event",
    "encode_result",
    "granted_scopes",
    "has_failed",
    "header_lines",
    "is_canceled",
    "query_value",
    "refusal",
    "require_scopes",
    "retry_delay",
    "sees",
    "take_rounds",
    "works_everywhere",
]
