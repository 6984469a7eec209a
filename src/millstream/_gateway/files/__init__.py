"""Files that configure a gateway: gateway.toml, and the mcpServers of other applications.

Names that other folders may import, besides the public ones of `millstream.gateway`:

- `live`: LiveConfig
- `read`: contains, load_file, parse, toml_statements
- `values`: ConfigError, GatewayConfig
"""
