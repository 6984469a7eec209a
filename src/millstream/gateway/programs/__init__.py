"""Programs of other libraries as upstreams: server objects of ``mcp`` 1.x and 2.x, and of fastmcp 2 to 4."""
