"""A server whose tools tell pages what happens, and a page that shows it."""

# region: server
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from millstream import Context, Server

mcp = Server("news", serve="hub")


@mcp.tool
async def announce(text: str) -> str:
    """Tell everyone who listens to the news."""
    sent = await mcp.hub.publish("news", {"text": text})
    return f"Sent to {sent.subscribers} on this worker."


# endregion

# region: page
PAGE = """<!doctype html>
<title>News</title>
<h1>News</h1>
<ul id="list"></ul>
<script type="module">
  import { connect } from "/hub.js";

  const list = document.getElementById("list");
  const news = connect().subscribe("news", { history: 20 });
  news.on("event", ({ data }) => {
    const item = document.createElement("li");
    item.textContent = JSON.parse(data).text;
    list.append(item);
  });
</script>
"""


@mcp.route("/news")
async def show_news(request: Request) -> Response:
    """Show the news as they arrive."""
    return HTMLResponse(PAGE)


# endregion


# region: context
@mcp.tool
async def order(isbn: str, ctx: Context) -> str:
    """Order a book."""
    await ctx.hub.publish("orders.created", {"isbn": isbn}, event="order")
    return "ordered"


# endregion

if __name__ == "__main__":
    mcp.run()
