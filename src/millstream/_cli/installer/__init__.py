"""Adds MCP servers to the configurations of other applications, and removes them."""
