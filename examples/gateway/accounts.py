"""Upstreams with credentials of each kind. The same as examples/gateway/accounts.toml."""

from millstream import Server, auth
from millstream.gateway import Secret, bearer, client_credentials, per_user_oauth, static_headers, token_exchange

LOGIN = "https://login.example.com"

mcp = Server("tools", auth=auth.oidc(LOGIN, audience="https://tools.example.com/mcp"))

# region: mail
mcp.upstream("docs", "https://docs.example.com/mcp", auth=bearer(env="DOCS_TOKEN"))
mcp.upstream(
    "mail",
    "https://mail.example.com/mcp",
    auth=static_headers({"x-api-key": Secret(file="/run/secrets/mail")}),
)
# endregion
mcp.upstream(
    "stock",
    "https://stock.example.com/mcp",
    auth=client_credentials("tools", Secret(env="STOCK_SECRET"), issuer=LOGIN, scope="stock:read"),
    forward_headers=["x-tenant"],
)
mcp.upstream("orders", "https://orders.example.com/mcp", auth=token_exchange(issuer=LOGIN))
mcp.upstream(
    "reports",
    "https://reports.example.com/mcp",
    auth=token_exchange(
        on_behalf_of=True,
        issuer="https://login.microsoftonline.com/TENANT/v2.0",
        client_id="ID",
        client_secret=Secret(env="ENTRA_SECRET"),
        scope="api://reports/.default",
    ),
)
mcp.upstream("notes", "https://notes.example.com/mcp", auth=per_user_oauth())
mcp.upstream("calendar", "https://calendar.example.com/mcp", auth=per_user_oauth(lists_from="ada"))
