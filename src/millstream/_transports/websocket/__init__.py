"""MCP and the hub over WebSocket."""
