"""Apps (``io.modelcontextprotocol/ui``): HTML views of the results of tools.

``apps.add("orders/")`` serves the views of a folder, and ``@apps.tool("ui://orders/table")`` links a tool to one.
"""

from millstream.extensions.apps._extension import AppOptions, Apps

__all__ = ["AppOptions", "Apps"]
