"""A program that uses `bookshop.py` as a client: typed values, a person who is asked, progress, resources, scripts."""

# region: typed
import asyncio
import os
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from millstream import Client, Server
from millstream.client import BlockingClient, ClientError, OAuth, Options, Question, Result, ToolFailed
from millstream.protocol import CreateMessageRequestParams

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
    except ToolFailed as exc:
        return f"The tool says no: {exc}"
    except ClientError as exc:
        return f"The call failed: {exc}"


# endregion


# region: model
def summarize(request: CreateMessageRequestParams) -> str:
    """Answer for a model: here without one."""
    return f"A summary, in at most {request.max_tokens} tokens."


async def let_it_write(server: str | Path) -> Result:
    async with Client(server, sample=summarize, roots=[Path.cwd()]) as client:
        return await client.call("search", words="Tolkien")


# endregion


# region: watch
async def follow(server: Server | str, uri: str) -> AsyncGenerator[str, None]:
    """Yield the text of a resource, now and after each change."""
    async with Client(server) as client, client.watch(uri) as changes:
        [now] = await client.read(uri)
        yield now.text or ""
        async for _ in changes:
            [now] = await client.read(uri)
            yield now.text or ""


# endregion


# region: oauth
def sign_in(url: str) -> Client:
    """Return a client that opens a browser when the server asks for a token."""
    return Client(url, options=Options(auth=OAuth()))


def sign_in_as_a_program(url: str) -> Client:
    """Return a client that gets tokens for itself, without a user."""
    secret = os.environ["SHOP_CLIENT_SECRET"]
    return Client(url, options=Options(auth=OAuth(client_id="nightly", client_secret=secret, client_credentials=True)))


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
