"""A server for platforms that start a process per request, or stop it at any time: it keeps nothing between requests.

As an ASGI application: ``uvicorn examples.serverless:mcp``, or the adapter of a platform.
"""

# region: server
from millstream import Server, Settings

mcp = Server("books", settings=Settings.load(sessions=False, json_only=True))


@mcp.tool
def price(isbn: str) -> int:
    """Price of a book, in cents."""
    return 100 * len(isbn)


# endregion

if __name__ == "__main__":
    mcp.run()
