"""Writes MCP servers into the configurations of other applications, and takes them out again."""
