"""A page that listens to the hub: ``millstream run board.py --auth KEY``."""

from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from millstream import Server

PAGE = """<!doctype html><title>Board</title><ul id="news"></ul><script type="module">
import { connect } from "./hub.js";
connect().subscribe("broadcast").on("event", ({ data }) => {
  news.append(Object.assign(document.createElement("li"), { textContent: data }));
});
</script>"""

mcp = Server("board", serve="all")


@mcp.route("/board")
async def board(request: Request) -> Response:
    """Show the page to people who have signed in."""
    return HTMLResponse(PAGE)
