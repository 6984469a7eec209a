"""The operations of an API elsewhere as tools, and two APIs beside a tool."""

# region: openapi
from typing import Any

import httpx2

from millstream import Server
from millstream.gateway import OpenApi, RouteKind, RouteMap, bearer

SHOP = "https://shop.example.com"


def make_server(document: dict[str, Any], token: str) -> Server:
    http = httpx2.AsyncClient(base_url=SHOP, headers={"Authorization": f"Bearer {token}"})
    return Server.from_openapi(
        document,
        http,
        name="shop",
        names={"get_book_books__isbn__get": "book"},
        routes=[
            RouteMap(pattern=r"^/admin", kind=RouteKind.EXCLUDE),
            RouteMap(methods=["GET"], pattern=r"^/books", kind=RouteKind.RESOURCE),
        ],
    )


# endregion


# region: main
def main() -> None:
    document = httpx2.get(f"{SHOP}/openapi.json").json()
    make_server(document, "secret").run(transport="http")


# endregion


# region: upstreams
mcp = Server("tools")
mcp.upstream(
    "shop",
    openapi=OpenApi(document=f"{SHOP}/openapi.json", tags=("orders",)),
    auth=bearer(env="SHOP_TOKEN"),
    forward_headers=["x-tenant"],
)


@mcp.tool
def opening_hours() -> str:
    """Return when the shop is open."""
    return "9 to 5"


# endregion
