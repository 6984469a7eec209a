"""HTTP/1.1 as a client speaks it: connections, replies and a pool. It knows nothing of MCP."""
