"""The MCP wire format, without I/O: functions take and return bytes and values.

Clock, randomness, and keys are arguments.

A citation such as "MCP 2025-11-25, server/tools" refers to a page below https://modelcontextprotocol.io/specification/,
in this case https://modelcontextprotocol.io/specification/2025-11-25/server/tools. A rule without a citation is our own
choice.
"""
