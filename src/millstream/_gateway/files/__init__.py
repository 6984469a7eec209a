"""Files that configure a gateway: gateway.toml, and the mcpServers of other applications."""

FACE = {
    "live": ["LiveConfig"],
    "read": ["contains", "load_file", "parse", "toml_statements"],
    "values": ["ConfigError", "GatewayConfig"],
}
"""Module -> names that other folders may import, besides the public ones of `millstream.gateway`."""
