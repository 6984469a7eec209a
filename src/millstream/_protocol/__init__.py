"""The MCP wire format, without I/O: bytes and values in, bytes and values out.

Clock, randomness, and keys are arguments.

A citation such as "MCP 2025-11-25, server/tools" is a page below https://modelcontextprotocol.io/specification/, here
https://modelcontextprotocol.io/specification/2025-11-25/server/tools. A rule without a citation is our own choice.
"""
