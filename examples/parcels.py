"""Tools that ask the person: forms, single values, several questions, payments. ``millstream dev parcels.py``."""

# region: order
from dataclasses import dataclass
from enum import Enum
from typing import Annotated, Literal

from millstream import Context, Declined, Depends, Elicit, Roots, Sample, Server, ToolError

mcp = Server("parcels")


@dataclass
class Delivery:
    street: str
    city: str
    speed: Literal["standard", "express"] = "standard"


@mcp.tool
async def order_parcel(item: str, ctx: Context) -> str:
    """Order an item. The person says where it should go."""
    to = await ctx.elicit(f"Where should {item} go?", Delivery)
    return f"{item} goes to {to.street}, {to.city} ({to.speed})."


# endregion


# region: values
class Reason(Enum):
    LATE = "late"
    DAMAGED = "damaged"
    LOST = "lost"


@mcp.tool
async def rate_parcel(ctx: Context) -> str:
    """Rate a delivery."""
    stars = await ctx.elicit("How many stars, from 1 to 5?", int)
    if stars > 2:
        return f"{stars} stars. Thank you!"
    try:
        reason = await ctx.elicit("What went wrong?", Reason)
    except Declined:
        return f"{stars} stars, without a reason."
    return f"{stars} stars, because it was {reason.value}."


# endregion


# region: depends
async def choose_delivery(ctx: Context) -> Delivery:
    """Ask where a parcel should go."""
    return await ctx.elicit("Where should the parcel go?", Delivery)


@mcp.tool
async def send_parcel(item: str, to: Annotated[Delivery, Depends(choose_delivery)]) -> str:
    """Send an item. The person says where it should go."""
    return f"{item} goes to {to.street}, {to.city} ({to.speed})."


# endregion


# region: once
PAID: list[str] = []


def pay(item: str) -> str:
    """Take the money, and return a receipt."""
    PAID.append(item)
    return f"receipt {len(PAID)}"


@mcp.tool(replay=True)
async def buy(item: str, ctx: Context) -> str:
    """Buy an item, and then ask where it should go."""
    receipt = await ctx.once("pay", lambda: pay(item))
    to = await ctx.elicit(f"{item} is paid. Where should it go?", Delivery)
    return f"{item} goes to {to.city}: {receipt}."


# endregion


# region: url
PARCELS: list[str] = []
"""What the post office tells us once the person has signed in there."""


@mcp.tool
async def connect_account(ctx: Context) -> str:
    """Connect the account at the post office."""
    await ctx.elicit_url("Sign in at the post office.", "https://post.example.com/connect")
    return "Call list_parcels when you're signed in."


@mcp.tool
def list_parcels() -> list[str]:
    """List the parcels on their way. The person has to connect the account first."""
    if not PARCELS:
        raise ToolError("The account isn't connected yet. Call connect_account.")
    return PARCELS


# endregion


# region: ask
@dataclass
class Sender:
    name: str


@mcp.tool
async def write_card(ctx: Context) -> str:
    """Write a card. The client's model finds the words."""
    answers = await ctx.ask(
        sender=Elicit("Who sends it?", Sender),
        words=Sample("Write a short greeting.", max_tokens=50),
        folders=Roots(),
    )
    words, name = answers["words"].text, answers["sender"].name
    return f"{words} {name}, with {len(answers['folders'])} folders open"


# endregion

if __name__ == "__main__":
    mcp.run()
