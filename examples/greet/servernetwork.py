"""Hello Server over the network: HTTP with server-sent events at http://127.0.0.1:8000/sse.

``pip install millstream``, then ``python servernetwork.py``.
"""

import argparse

from millstream import Server

# 1. Make the server
mcp = Server("Hello Server", version="1.0.0")


# 2. Register tools, resources and prompts
@mcp.tool
def greet(name: str = "world") -> str:
    """Greet a person by name."""
    return f"Hello Hello, {name}!"


@mcp.resource("hello://about")
def about() -> str:
    """What this server is for."""
    return "A server that says hello."


@mcp.prompt
def introduce(name: str) -> str:
    """Ask the model for a warm introduction."""
    return f"Introduce {name} to the team in two friendly sentences."


if __name__ == "__main__":
    options = argparse.ArgumentParser()
    options.add_argument("--host", default="127.0.0.1")
    options.add_argument("--port", type=int, default=8000)
    chosen = options.parse_args()
    # 3. Serve: /sse for clients of 2024-11-05, /mcp for all others
    mcp.run("http", host=chosen.host, port=chosen.port)
