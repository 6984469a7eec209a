"""Transports: Streamable HTTP, HTTP+SSE, stdio, WebSocket, and in memory."""
