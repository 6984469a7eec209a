"""A call on its way to an upstream and back: items whose functions forward, and what callers read about a failure.

Names that other folders may import, besides the public ones of `millstream.gateway`:

- `failures`: describe_fault, no_response_error, refused_error
- `forward`: connect, forward, forward_exactly, forward_plainly, forward_stream
- `items`: CORE, ExtensionForwarding, MCP_ITEMS, SKILL_METHODS, UpstreamTool
"""
