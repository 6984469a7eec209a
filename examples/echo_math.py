"""Two servers in one FastAPI application: /echo/mcp and /math/mcp.

No lifespan to combine and nothing to start by hand: each server opens what it needs at its first request. Run it with
``uvicorn examples.echo_math:app`` (needs ``fastapi``); the servers' root path is the mount point.
"""

# region: mount
from fastapi import FastAPI

from millstream import Server

echo_server = Server("EchoServer")
math_server = Server("MathServer")


@echo_server.tool
def echo(message: str) -> str:
    """A simple echo tool."""
    return f"Echo: {message}"


@math_server.tool
def add_two(n: int) -> int:
    """A simple add tool."""
    return n + 2


app = FastAPI()
app.mount("/echo", echo_server)
app.mount("/math", math_server)
# endregion
