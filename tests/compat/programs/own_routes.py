"""A server with its own page and webhook. Millstream has a page at the same path."""

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from millstream.compat.fastmcp import FastMCP

mcp = FastMCP("routes")


@mcp.tool()
def add(a: int, b: int) -> int:
    return a + b


@mcp.custom_route("/health", methods=["GET"])
async def health(request: Request) -> Response:
    return JSONResponse({"of": "the program"})


@mcp.custom_route("/hooks/{name}", methods=["POST"])
async def hook(request: Request) -> Response:
    return JSONResponse({request.path_params["name"]: (await request.body()).decode()})


if __name__ == "__main__":
    mcp.run(transport="streamable-http")
