"""Hello Server: one tool, one resource and one prompt.

Run it with ``python examples/greet.py`` (HTTP in a terminal, stdio when piped) or ``millstream run examples/greet.py``.
"""

# region: server
from millstream import Server

mcp = Server("Hello Server", version="1.0.0")


@mcp.tool
def greet(name: str = "world") -> str:
    """Greet a person by name."""
    return f"Hello, {name}!"


# endregion


@mcp.resource("hello://about")
def about() -> str:
    """What this server is for."""
    return "A server that says hello."


@mcp.prompt
def introduce(name: str) -> str:
    """Ask the model for a warm introduction."""
    return f"Introduce {name} to the team in two friendly sentences."


if __name__ == "__main__":
    mcp.run()
