"""A server whose callers can't ask as often as they like."""

# region: server
from millstream import Server, Settings

mcp = Server("search", settings=Settings.load(limit_calls="60/minute", limit_quota="1000/day"))


@mcp.tool(limit="2/minute")
async def crawl(url: str) -> str:
    """Fetch a whole site."""
    return f"fetched {url}"


@mcp.tool(concurrency=4)
async def render(page: str) -> str:
    """Draw a page. Four calls run at a time."""
    return f"drew {page}"


@mcp.tool(cost=10)
async def summarize(text: str) -> str:
    """Summarize text, which counts as ten calls."""
    return text[:80]


# endregion

if __name__ == "__main__":
    mcp.run()
