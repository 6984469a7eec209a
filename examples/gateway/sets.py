"""The sets of sets.toml, in code."""

from millstream import Server
from millstream.gateway import ToolPolicy

BUY = ToolPolicy(name="buy", description="Buy a book. The company pays.", hidden={"account": "company"})

mcp = Server("gateway")
mcp.upstream("shop", ["python", "shop.py"])
mcp.upstream("warehouse", ["python", "warehouse.py"])

mcp.add_set(
    "/mcp/readers",
    instructions="Answer questions about books. You can't order any.",
    allow=["shop_search_books", "warehouse_count", "stock://*"],
)
mcp.add_set("/mcp/buyers", allow=["shop_search_books", "shop_order"], limit="60/minute", tools={"shop_order": BUY})
mcp.add_set("/mcp/warehouse", upstreams=["warehouse"], short_names=True)
