"""``millstream tokens``: estimate how many tokens a tool list takes in a model's context.

A token is estimated as four characters of the JSON that a model receives (name, description, and input schema).
Tokenizers differ by up to a third for such text, so the figures are for comparing tools.
"""

from typing import Any

import msgspec

from millstream._cli.connect_options import (
    DEFAULTS,
    ConnectOptions,
    Target,
    with_client,
)
from millstream._cli.options import Json
from millstream._cli.tables import print_json, print_rows
from millstream._protocol.notifications import ToolDescription
from millstream.client._client import Client
from millstream.gateway._search import CALL, CALL_DESCRIPTION, SEARCH, SEARCH_DESCRIPTION

_CHARACTERS = 4


def cost(tool: ToolDescription) -> int:
    """Estimate how many tokens a tool takes in a model's context."""
    return _cost(tool.name, tool.description or "", tool.input_schema)


def _cost(name: str, description: str, schema: dict[str, Any]) -> int:
    shown = {"name": name, "description": description, "input_schema": schema}
    return -(-len(msgspec.json.encode(shown).decode()) // _CHARACTERS)


def search_cost() -> int:
    """Estimate how many tokens the tool list takes with `tool_search`."""
    both = ((SEARCH, SEARCH_DESCRIPTION), (CALL, CALL_DESCRIPTION))
    return sum(_cost(name, about["description"], about["inputSchema"]) for name, about in both)


def tokens(
    target: Target,
    /,
    *,
    options: ConnectOptions = DEFAULTS,
    json: Json = False,
) -> None:
    """Show the cost of a server's tools in tokens, the most expensive first.

    The estimate is one token for four characters of names, descriptions, schemas, and instructions. The last row is the
    cost with tool search (MILLSTREAM_TOOL_SEARCH=true).

    **Example**

    - `millstream tokens shop.py`
    """

    async def work(client: Client) -> None:
        costs = sorted(((cost(tool), tool.name) for tool in await client.tools()), reverse=True)
        instructions = -(-len(client.instructions) // _CHARACTERS)
        total = sum(each for each, _ in costs) + instructions
        if json:
            tools = [{"name": name, "tokens": each} for each, name in costs]
            searched = search_cost() + instructions
            print_json({"tools": tools, "instructions": instructions, "total": total, "with_search": searched})
            return
        rows = [[f"{each:,}", f"{100 * each / (total or 1):.0f}%", name] for each, name in costs]
        rows.append([f"{instructions:,}", f"{100 * instructions / (total or 1):.0f}%", "(instructions)"])
        rows.append([f"{total:,}", "100%", "(all)"])
        if SEARCH not in {name for _, name in costs}:
            searched = search_cost() + instructions
            rows.append([f"{searched:,}", f"{100 * searched / (total or 1):.0f}%", "(all, with tool search)"])
        print_rows(rows, ["TOKENS", "SHARE", "TOOL"])

    with_client(target, options, work)
