"""HTTP that knows no MCP: messages, hosts, media types, the ASGI adapter, the server, WebSocket frames."""
