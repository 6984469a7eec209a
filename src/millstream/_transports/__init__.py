"""MCP transports: Streamable HTTP, HTTP+SSE, WebSocket, REST, stdio, and memory."""
