"""A server inside of middleware for HTTP: serve `app` with an ASGI server."""

# region: app
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.routing import Mount

from millstream import Server

mcp = Server("shop")
app = Starlette(routes=[Mount("/", mcp)], middleware=[Middleware(GZipMiddleware)], lifespan=mcp.lifespan)
# endregion


@mcp.tool
async def catalog() -> str:
    """Every book there is, which is long."""
    return "a book\n" * 1000
