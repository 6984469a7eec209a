"""The wire, without I/O: bytes and values in, bytes and values out. Clock, randomness and keys are arguments.

A citation as "MCP 2025-11-25, server/tools" is a page below https://modelcontextprotocol.io/specification/, here
https://modelcontextprotocol.io/specification/2025-11-25/server/tools. Where there is none, the choice is ours.
"""
