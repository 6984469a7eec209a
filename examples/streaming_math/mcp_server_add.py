"""The smallest of three: `add_numbers` over standard input and output, for a client that starts the program."""

from millstream import Server

mcp = Server("add", version="1.0.0")
Number = int | float


@mcp.tool
def add_numbers(a: Number, b: Number) -> Number:
    """Add two numbers."""
    return a + b


if __name__ == "__main__":
    mcp.run("stdio")
