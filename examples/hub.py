"""The main demonstration: every feature of a server in one file.

``make run`` starts it on 127.0.0.1:8000. Tools that broadcast, calculate, report progress, ask the person and ask the
client's model; resources, a template and a live one; a prompt with completion; and beside MCP the hub, REST, the
pages and metrics.
"""

import asyncio
import math
import operator
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from itertools import count
from typing import Annotated, Literal
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from millstream import Context, Field, Server, ToolError

mcp = Server(
    "hub",
    version="1.0.0",
    instructions="Send messages, calculate, tell the time, order a parcel, summarize text.",
    serve="all",
)
Number = int | float


# region: stream
@mcp.tool
async def add_numbers(a: Number, b: Number, ctx: Context, stream: bool = False) -> Number:
    """Add two numbers; with stream=true, report each step."""
    if stream:
        await ctx.progress(1, 3, f"First number: {a}")
        await ctx.progress(2, 3, f"Second number: {b}")
        await ctx.progress(3, 3, "Adding")
    return finite(operator.add, a, b)


# endregion


def finite(work: Callable[[Number, Number], Number], a: Number, b: Number) -> Number:
    """JSON has no infinity, and Python's integers outgrow its floats."""
    try:
        number = work(a, b)
        if math.isfinite(number):
            return number
    except OverflowError:
        pass
    raise ToolError("The result is too large for a number. Use smaller ones.")


# region: broadcast
@mcp.tool
async def send_sse_message(message: str, ctx: Context, name: str = "", channel: str = "broadcast") -> str:
    """Send a message to everybody who listens to a channel: plain text, or with a name as JSON."""
    data = {"name": name, "message": message, "time": time.time()} if name else message
    sent = await ctx.hub.publish(channel, data, publisher=ctx.principal)
    return f"Message sent to {sent.subscribers} listeners on this worker."


# endregion


@mcp.tool
async def multiply_numbers(a: Number, b: Number, ctx: Context, stream: bool = False) -> Number:
    """Multiply two numbers; with stream=true, report each step."""
    if stream:
        await ctx.progress(1, 3, f"First number: {a}")
        await ctx.progress(2, 3, f"Second number: {b}")
        await ctx.progress(3, 3, "Multiplying")
    return finite(operator.mul, a, b)


@dataclass
class ServerInfo:
    name: str
    version: str
    python: str
    revision: str
    """The revision of this very request."""


@cache
def server_info(revision: str) -> ServerInfo:
    """Made once for each revision: nothing of it changes while the server runs."""
    return ServerInfo(mcp.name, mcp.version, platform.python_version(), revision)


@mcp.tool
async def get_server_info(ctx: Context) -> ServerInfo:
    """What this server is and which protocol revision the call arrived in."""
    return server_info(ctx.revision)


@mcp.tool
def greet(name: str = "world") -> str:
    """Greet a person by name."""
    return f"Hello, {name}!"


@mcp.tool
def get_current_time(timezone: str = "UTC") -> str:
    """The time now in an IANA time zone such as Europe/Berlin."""
    try:
        zone = ZoneInfo(timezone)
    except (ZoneInfoNotFoundError, ValueError, OSError) as exc:  # OSError: the name of a folder, such as Europe
        raise ToolError(f"There is no time zone {timezone!r}. Use an IANA name such as Europe/Berlin.") from exc
    return datetime.now(zone).isoformat(timespec="seconds")


# region: progress
@mcp.tool
async def long_task(
    ctx: Context,
    steps: Annotated[int, Field(ge=1, le=1000)] = 5,
    seconds: Annotated[float, Field(ge=0, le=600)] = 1.0,
) -> str:
    """Work for some seconds and report every step."""
    for step in range(1, steps + 1):
        await asyncio.sleep(seconds / steps)
        await ctx.progress(step, steps, f"Step {step} of {steps}")
    return f"Done in {steps} steps."


# endregion


# region: order
@dataclass
class Delivery:
    street: str
    city: str
    speed: Literal["standard", "express"] = "standard"


orders: dict[str, str] = {}
order_numbers = count(1)


@mcp.tool
async def order_parcel(item: str, ctx: Context) -> dict[str, str]:
    """Order an item. The person says where it should go."""
    where = await ctx.elicit(f"Where should {item} go?", Delivery)
    number = str(next(order_numbers))
    orders[number] = f"{item} to {where.street}, {where.city} ({where.speed})"
    await mcp.resource_updated(f"orders://{number}")
    return {"order": number, "status": orders[number]}


# endregion


# region: live
@mcp.live("orders://{number}")
def order_status(number: str) -> str:
    """How an order is doing; subscribers hear of every change."""
    return orders.get(number, "There is no such order yet.")


# endregion


# region: sample
@mcp.tool
async def summarize(text: str, ctx: Context) -> str:
    """Summarize text with the client's own model."""
    answer = await ctx.sample(f"Summarize in one sentence:\n\n{text}", max_tokens=200)
    return answer.text


# endregion


@mcp.resource("hub://about", mime_type="text/markdown")
def about() -> str:
    """What this server offers."""
    return "# hub\n\nTools that calculate, wait, ask and summarize; resources; a prompt with completion."


@mcp.resource("time://{area}/{city}")
def time_in(area: str, city: str) -> str:
    """The time now in a city, for example time://Europe/Berlin."""
    return get_current_time(f"{area}/{city}")


LANGUAGES = ["Dutch", "English", "French", "German", "Hindi", "Spanish"]


# region: prompt
@mcp.prompt
def translate(text: str, language: str = "English") -> str:
    """Ask the model for a translation."""
    return f"Translate into {language}:\n\n{text}"


@mcp.complete("translate", argument="language")
def languages(value: str, arguments: dict[str, str]) -> list[str]:
    """Languages that begin with what was typed."""
    return [name for name in LANGUAGES if name.lower().startswith(value.lower())]


# endregion

if __name__ == "__main__":
    mcp.run()
