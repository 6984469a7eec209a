"""A large server: 500 tools, nested schemas, long texts, right-to-left text, and every kind of content."""

import struct
import zlib
from dataclasses import dataclass, field
from typing import Annotated, Literal

from millstream import Audio, Context, EmbeddedResource, Field, Image, ResourceLink, Server, ToolError, ToolResult
from millstream._protocol.content import Content
from millstream.protocol import ToolUnavailable

mcp = Server(
    "crowded مخزن",
    version="3.2.1-rc.4",
    serve="all",
    instructions="# Read me\n\nUse **tools** wisely.\n\n- one\n- two\n\n<script>alert(1)</script>",
)


@dataclass
class Address:
    street: str
    zip: Annotated[str, Field(pattern=r"^\d{5}$")] = "12345"


@dataclass
class Line:
    sku: str
    count: Annotated[int, Field(ge=1, le=99)] = 1


@dataclass
class Order:
    customer: str
    ship_to: Address
    lines: list[Line]
    speed: Literal["standard", "express"] = "standard"
    bill_to: Address | None = None
    prices: dict[str, float] = field(default_factory=dict)


@mcp.tool
def place_order(order: Order, note: str = "", dry_run: bool = True) -> Order:
    """Place an order.

    Nothing is charged while `dry_run` is on.
    """
    return order


@mcp.tool
def prose() -> str:
    """Markdown, some of it hostile."""
    return (
        "# Numbers\n\nA **bold** claim, [a page](https://example.org/) and [a trap](javascript:alert(1)).\n\n"
        "| name | count |\n|---|---|\n| a | 1 |\n\n```python\nprint('hi')\n```\n\n<img src=x onerror=alert(1)>"
    )


def png() -> bytes:
    """One red dot."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 1, 1, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(b"\0\xff\0\0")) + chunk(b"IEND", b"")


def wav() -> bytes:
    """A moment of silence."""
    head = b"RIFF" + struct.pack("<I", 36 + 8) + b"WAVEfmt " + struct.pack("<IHHIIHH", 16, 1, 1, 8000, 8000, 1, 8)
    return head + b"data" + struct.pack("<I", 8) + b"\x80" * 8


@mcp.tool
def gallery() -> ToolResult:
    """Every kind of content."""
    content: list[str | Content] = [
        "نص عربي طويل " * 40,
        Image(data=png(), mime_type="image/png"),
        Audio(data=wav(), mime_type="audio/wav"),
        ResourceLink(uri="note://1", name="a note", mime_type="text/markdown"),
        EmbeddedResource(uri="note://2", mime_type="text/plain", text="x" * 4000),
    ]
    return ToolResult(content, structured={"n": 7, "more": {"deep": [1, 2, {"x": None}]}})


@mcp.tool
def broken() -> str:
    """Always fails."""
    raise ToolUnavailable("The oven is cold. Heat it up first, and try again.")


@mcp.tool(title="تحية من القلب")
def greeting(
    name: Annotated[str, Field(description="اسم الشخص الذي نحييه")] = "آدا",
    tone: Annotated[Literal["رسمي", "ودي"], Field(description="كيف نتكلم")] = "ودي",
) -> dict[str, str]:
    """نحيي شخصا بالعربية.

    النص كله من اليمين إلى اليسار، مع كلمة English في الوسط.
    """
    if name == "لا أحد":
        raise ToolError("لا نعرف هذا الشخص. اكتب اسما آخر.")
    return {"تحية": f"مرحبا يا {name}!", "نبرة": tone}


@mcp.tool(name="long_words_" + "without_an_end_" * 6)
def long_words(
    a_parameter_whose_name_goes_on_and_on_without_ever_coming_to_its_end: Annotated[
        str, Field(description="Its description, too, has more words than anybody reads. " * 8)
    ] = "unbreakable" * 60,
    choice: Literal["one", "a choice that is much longer than the field in which it is shown " * 3] = "one",
) -> str:
    """Summary of a tool whose author had a lot to say, and no editor to say that it was too much for one line."""
    raise ToolError("nobreak" * 100 + " " + a_parameter_whose_name_goes_on_and_on_without_ever_coming_to_its_end)


@mcp.tool
async def chatty(ctx: Context) -> str:
    """Log and report."""
    for step in range(4):
        await ctx.log("error" if step == 3 else "info", {"message": f"step {step}", "step": step})
        await ctx.progress(step, 4, f"step {step}")
    return "done"


@mcp.resource("note://{number}", mime_type="text/markdown")
def note(number: str) -> str:
    """A note."""
    return f"## Note {number}\n\nWritten with *care*."


def numbered(number: int = 0) -> int:
    """Give it back."""
    return number


for index in range(500):
    name = f"tool_{index:03d}" + ("_with_a_name_that_is_much_too_long_for_any_list_of_tools" if index % 50 == 7 else "")
    about = "الأداة تفعل شيئا" if index % 10 == 3 else f"Number {index}. " * (1 + index % 20)
    mcp.tool(numbered, name=name, description=about)
