"""Apps (``io.modelcontextprotocol/ui``): HTML views of the results of tools.

``mcp.app("orders/")`` serves the views of a folder, and ``@mcp.tool(ui="ui://orders/table")`` links a tool to one.
"""

from millstream.extensions.apps._extension import AppOptions, Apps

__all__ = ["AppOptions", "Apps"]
