"""HTTP independent of MCP: messages, hosts, media types, the ASGI adapter, the server, and WebSocket frames."""
