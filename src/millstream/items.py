"""Items that don't come from functions: tools from another server, a document, or a database.

`Tool`, `Prompt`, `Resource`, and `Template` are built from an `ItemSource`, whose function receives the arguments and
the `Call`. An extension adds them with `millstream.extensions.Host.add_item`.

Example:
    >>> async def run(arguments: dict[str, Any], call: Call) -> str:
    ...     return await catalog.look_up(arguments["isbn"])
    >>> host.add_item(Tool(ItemSource("look_up", run, msgspec.json.decode, schema=SCHEMA)))
"""

from millstream._server.calls.call import Call
from millstream._server.features.resources import Prompt, Resource, Template
from millstream._server.features.sources import ItemSource
from millstream._server.features.tools import Tool
from millstream._server.functions.plan import ArgumentError
from millstream._server.functions.problems import describe_problems

__all__ = ["ArgumentError", "Call", "ItemSource", "Prompt", "Resource", "Template", "Tool", "describe_problems"]
