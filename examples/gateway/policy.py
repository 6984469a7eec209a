"""The policy of gateway.toml, in code."""

from millstream import Server
from millstream.gateway import ToolPolicy, UpstreamPolicy

SHOP = UpstreamPolicy(
    deny=("delete_*",),
    limit="60/minute",
    redact_results=(r"\b\d(?:[ -]?\d){14,15}\b",),
    tools={
        "order": ToolPolicy(
            name="buy",
            description="Buy a book. The company pays.",
            hidden={"account": "company"},
            scopes=("orders:write",),
            limit="5/minute",
        ),
        "report": ToolPolicy(groups=("sales", "finance"), result_tokens=2000),
    },
)

mcp = Server("tools")
mcp.upstream("shop", ["python", "shop.py"], policy=SHOP)
