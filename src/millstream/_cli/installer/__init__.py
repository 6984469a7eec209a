"""Adds MCP servers to the configuration of applications, and removes them."""
