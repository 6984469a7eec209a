"""Upstreams that speak MCP: their lists, connections, and subscriptions, and whether they respond.

Names that other folders may import, besides the public ones of `millstream.gateway`:

- `breaker`: find_outage
- `links`: LEFT_SECONDS, Link, MAX_OWN_SESSIONS, SESSIONS_PREFIX
- `lists`: ListKeeper, reconnect_delay
- `mcp`: McpUpstream
- `upstream`: Gateway, ItemClasses, NAME, Upstream
"""
