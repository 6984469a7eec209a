"""How messages reach a server: Streamable HTTP, HTTP+SSE, stdio, WebSocket and in memory."""
