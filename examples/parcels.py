"""Tools that ask: one question, and several in one round."""

# region: order
from dataclasses import dataclass
from typing import Literal

from millstream import Context, Elicit, Roots, Sample, Server

mcp = Server("parcels")


@dataclass
class Delivery:
    street: str
    city: str
    speed: Literal["standard", "express"] = "standard"


@mcp.tool
async def order_parcel(item: str, ctx: Context) -> str:
    """Order an item. The person says where it should go."""
    where = await ctx.elicit(f"Where shall we send: {item}?", Delivery)
    return f"{item} goes to {where.street}, {where.city} ({where.speed})."


# endregion


# region: ask
@dataclass
class Sender:
    name: str


@mcp.tool
async def write_card(ctx: Context) -> str:
    """Write a card: the person says who sends it, and the client's model finds the words."""
    answers = await ctx.ask(
        sender=Elicit("Who sends it?", Sender),
        words=Sample("Write a short greeting.", max_tokens=50),
        folders=Roots(),
    )
    return f"{answers['words'].text} {answers['sender'].name}, with {len(answers['folders'])} folders open"


# endregion

if __name__ == "__main__":
    mcp.run()
