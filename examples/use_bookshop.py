"""A program that uses `bookshop.py` as a client: typed values, a person who is asked, progress, resources, scripts."""

# region: typed
import asyncio
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from millstream import Client
from millstream.client import BlockingClient, ConnectFailed, Question

BOOKSHOP = Path(__file__).with_name("bookshop.py")


@dataclass
class Receipt:
    ordered: int


def ask(question: Question) -> dict[str, Any]:
    """Fill in the form that the server sends: here without a person."""
    return {**question.defaults, "street": "1 Mill Lane", "city": "Bath"}


async def order(server: str | Path) -> Receipt:
    async with Client(server, elicit=ask) as client:
        return await client.call("order", isbn="9780141439600", copies=2, result_type=Receipt, progress=show)


def show(done: float, total: float | None, message: str | None) -> None:
    print(f"{done:g} of {total:g}" if total else f"{done:g}")


# endregion


# region: offers
async def look_around(server: str | Path) -> list[str]:
    async with Client(server) as client:
        names = [tool.name for tool in await client.tools()]
        names += [template.uri_template async for template in client.templates()]
        [book] = await client.read("book://9780261103573")
        names.append(book.text or "")
        review = await client.prompt("review", isbn="9780261103573", tone="dry")
        names.append(review.messages[0].role)
        return names


# endregion


# region: errors
async def try_to_order(server: str) -> str:
    try:
        return str(await order(server))
    except ConnectFailed as exc:
        return f"Later, perhaps. {exc}"


# endregion


# region: script
def books(server: str | Path) -> dict[str, str]:
    with BlockingClient(server) as client:
        found: dict[str, str] = client.call("search", words="Tolkien", result_type=dict[str, str])
        return found


# endregion


# region: main
if __name__ == "__main__":
    print(asyncio.run(order(BOOKSHOP)))
# endregion
