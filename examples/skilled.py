"""Skills: instructions that a server offers beside its tools."""

# region: server
from millstream import Client, Server
from millstream.extensions.skills import Skills

mcp = Server("bookshop")
skills = mcp.extend(Skills())
skills.add("skills")


@mcp.tool
def find_order(number: int) -> str:
    """Find an order."""
    return f"Order {number}: Dune, 12.50"


@skills.skill
def gift_wrapping() -> str:
    """Wrap a book as a gift. Use it when an order is a present."""
    return "Ask for the name on the card. Add 3.00 to the order."


# endregion


# region: client
async def load(url: str) -> str:
    async with Client(url) as client:
        for skill in await client.skills():
            if skill.name == "refunds":
                return (await client.read_skill(skill)).decode()
    return ""


# endregion

if __name__ == "__main__":
    mcp.run()
