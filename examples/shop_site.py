"""Pages, a webhook and a folder of files beside MCP."""

# region: routes
from pathlib import Path

from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response

from millstream import Server

mcp = Server("shop")
paid: list[str] = []


@mcp.tool
async def is_paid(order: str) -> bool:
    """Whether an order is paid."""
    return order in paid


@mcp.route("/")
async def home(request: Request) -> Response:
    return HTMLResponse(f"<h1>Shop</h1><p>{len(paid)} orders are paid.</p>")


@mcp.route("/hooks/{provider}", methods=["POST"], public=True)
async def payment(request: Request) -> Response:
    event = await request.json()
    paid.append(event["order"])
    return JSONResponse({"heard_from": request.path_params["provider"]})


# endregion

# region: static
mcp.static("/app", Path(__file__).parent / "site", public=True)
# endregion

if __name__ == "__main__":
    mcp.run()
