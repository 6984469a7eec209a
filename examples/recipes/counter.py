"""A page that shows each sale as it happens, and the tool that sells."""

from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from millstream import Server

mcp = Server("bookshop", serve="hub")

PAGE = """<!doctype html>
<title>Sales</title>
<h1>Sold today</h1>
<ul id="sales"></ul>
<script type="module">
  import { connect } from "/hub.js";

  const sales = document.getElementById("sales");
  connect().subscribe("sales", { history: 20 }).on("event", ({ data }) => {
    const item = document.createElement("li");
    item.textContent = JSON.parse(data).title;
    sales.prepend(item);
  });
</script>
"""


@mcp.route("/sales")
async def show_sales(request: Request) -> Response:
    """Show the page."""
    return HTMLResponse(PAGE)


@mcp.tool
async def sell(title: str) -> str:
    """Sell a book."""
    await mcp.hub.publish("sales", {"title": title})
    return f"Sold {title}."


if __name__ == "__main__":
    mcp.run()
