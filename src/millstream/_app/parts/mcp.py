"""MCP over HTTP: Streamable HTTP and HTTP+SSE."""

from millstream._app.parts import OwnPart
from millstream._parts import Host, Route


class McpPart(OwnPart):
    """Serves the paths of MCP."""

    name: str = "mcp"

    async def open(self, host: Host) -> None:
        """Add the paths once HTTP is served."""
        host.on_http(lambda: _serve(host))


def _serve(host: Host) -> None:
    from millstream._transports.http_sse import HttpSse  # noqa: PLC0415  a server without HTTP does without these
    from millstream._transports.streamable.exchange import StreamableEndpoint  # noqa: PLC0415
    from millstream._transports.streamable.get import SessionStreams  # noqa: PLC0415
    from millstream._transports.streamable.post import Streamable  # noqa: PLC0415
    from millstream._transports.streamable.sessions import HttpSessions  # noqa: PLC0415

    settings, streams = host.settings, host.streams
    sessions = HttpSessions(host.services) if settings.sessions else None
    endpoint = StreamableEndpoint(host.dispatcher, streams, sessions)
    sse = HttpSse(host.dispatcher, streams)
    standing = SessionStreams(endpoint, first=sse.get)
    mcp = Route(
        {"POST": Streamable(endpoint).post, "GET": standing.get, "DELETE": standing.delete}, stream=True, reserved=True
    )
    messages = Route({"POST": sse.post}, reserved=True)
    path, posts = settings.path, settings.messages_path
    routes = {
        path: mcp,
        path.rstrip("/") + "/": mcp,
        settings.sse_path: Route({"GET": sse.get}, stream=True, gated=True, reserved=True),
        posts: messages,
        posts.rstrip("/") or "/": messages,
    }
    if posts == "/messages/":
        routes.setdefault("/message", messages)  # the name used by other servers and documents
    for each, route in routes.items():
        host.routes.add(each, route)
