"""MCP over something: Streamable HTTP, HTTP+SSE, WebSocket, REST, stdio, memory."""
