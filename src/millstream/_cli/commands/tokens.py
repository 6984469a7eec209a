"""``millstream tokens``: what the list of tools costs a model, before it has called one.

A token is counted as four characters of the JSON that a model is given (name, description and input schema): tokenizers
differ by model, and by no more than a third for such text. What counts is which tool is the expensive one.
"""

import msgspec

from millstream._cli.connect_options import ConnectOptions, Json, connects, with_client
from millstream._cli.tables import print_json, print_rows
from millstream._protocol.messages import ToolDescription
from millstream.client._client import Client

_CHARACTERS = 4


def cost(tool: ToolDescription) -> int:
    """About how many tokens a tool takes in the context of a model."""
    shown = {"name": tool.name, "description": tool.description or "", "input_schema": tool.input_schema}
    return -(-len(msgspec.json.encode(shown).decode()) // _CHARACTERS)


@connects()
def tokens(
    options: ConnectOptions,
    /,
    *,
    json: Json = False,
) -> None:
    """Show what a server's tools cost a model in tokens, the most expensive first.

    It's an estimate: four characters of name, description and schema are a token. Instructions count, too.

    **Example**

    - `millstream tokens shop.py`
    """

    async def work(client: Client) -> None:
        costs = sorted(((cost(tool), tool.name) for tool in await client.tools()), reverse=True)
        instructions = -(-len(client.instructions) // _CHARACTERS)
        total = sum(each for each, _ in costs) + instructions
        if json:
            tools = [{"name": name, "tokens": each} for each, name in costs]
            print_json({"tools": tools, "instructions": instructions, "total": total})
            return
        rows = [[f"{each:,}", f"{100 * each / (total or 1):.0f}%", name] for each, name in costs]
        rows.append([f"{instructions:,}", f"{100 * instructions / (total or 1):.0f}%", "(instructions)"])
        rows.append([f"{total:,}", "100%", "(all)"])
        print_rows(rows, ["TOKENS", "SHARE", "TOOL"])

    with_client(options.client, work)
