"""Server objects of other libraries as upstreams: ``mcp`` 1.x and 2.x, and fastmcp 2 to 4."""
