"""``millstream tokens``: what the list of tools costs a model, before it has called one.

A token is counted as four characters of the JSON that a model is given (name, description and input schema): tokenizers
differ by model, and by no more than a third for such text. What counts is which tool is the expensive one.
"""

from typing import Any

import msgspec

from millstream._cli.connect_options import ConnectOptions, Json, connects, with_client
from millstream._cli.tables import print_json, print_rows
from millstream._protocol.messages import ToolDescription
from millstream.client._client import Client
from millstream.gateway.search import CALL, CALL_DESCRIPTION, SEARCH, SEARCH_DESCRIPTION

_CHARACTERS = 4


def cost(tool: ToolDescription) -> int:
    """About how many tokens a tool takes in the context of a model."""
    return _cost(tool.name, tool.description or "", tool.input_schema)


def _cost(name: str, description: str, schema: dict[str, Any]) -> int:
    shown = {"name": name, "description": description, "input_schema": schema}
    return -(-len(msgspec.json.encode(shown).decode()) // _CHARACTERS)


def search_cost() -> int:
    """Return about how many tokens the list takes when `tool_search` is on."""
    both = ((SEARCH, SEARCH_DESCRIPTION), (CALL, CALL_DESCRIPTION))
    return sum(_cost(name, about["description"], about["inputSchema"]) for name, about in both)


@connects()
def tokens(
    options: ConnectOptions,
    /,
    *,
    json: Json = False,
) -> None:
    """Show what a server's tools cost a model in tokens, the most expensive first.

    It's an estimate: four characters of name, description and schema are a token. Instructions count, too. The last
    row is what's left with tool search (MILLSTREAM_TOOL_SEARCH=true).

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

    with_client(options.client, work)
