"""A notebook: tools, resources, prompts, errors, pictures, and logs. ``millstream dev notebook.py``."""

# region: start
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from millstream import Context, Field, Image, Message, ResourceLink, Server, Text, ToolAnnotations, ToolError

mcp = Server("notebook")
logger = logging.getLogger("notebook")

NOTES: dict[int, str] = {1: "Buy milk", 2: "Call Ada"}
# endregion


# region: tool
@dataclass
class Note:
    number: int
    text: str


@mcp.tool(annotations=ToolAnnotations(read_only_hint=True))
def find(
    words: Annotated[str, Field(description="Text to look for, in any case", min_length=2)],
    order: Literal["newest", "oldest"] = "newest",
) -> list[Note]:
    """Find notes that contain some text."""
    found = [Note(number, text) for number, text in NOTES.items() if words.lower() in text.lower()]
    return found if order == "oldest" else found[::-1]


# endregion


# region: errors
@mcp.tool
def remove(number: int) -> str:
    """Remove a note."""
    if number not in NOTES:
        raise ToolError(f"There is no note {number}. Call find first.")
    del NOTES[number]
    return f"Note {number} is gone."


# endregion


# region: resources
@mcp.resource("notes://all", mime_type="text/plain")
def all_notes() -> str:
    """Every note, one on each line."""
    return "\n".join(f"{number}: {text}" for number, text in NOTES.items())


@mcp.resource("notes://{number}")
def one_note(number: int) -> str:
    """One note by its number."""
    return NOTES.get(number, f"There is no note {number}.")


@mcp.tool
async def add(text: str) -> ResourceLink:
    """Add a note."""
    number = max(NOTES, default=0) + 1
    NOTES[number] = text
    await mcp.resource_updated("notes://all")
    return ResourceLink(f"notes://{number}", f"Note {number}", mime_type="text/plain")


# endregion


# region: prompts
@mcp.prompt
def plan(day: str, mood: Literal["calm", "busy"] = "calm") -> list[Message]:
    """Plan a day by the notes."""
    return [
        Message("user", "My notes:\n" + "\n".join(NOTES.values())),
        Message("assistant", "I have read them."),
        Message("user", f"Plan {day} for a {mood} person. Use the notes, and nothing else."),
    ]


@mcp.complete("plan", argument="day")
def days(value: str, arguments: dict[str, str]) -> list[str]:
    """Weekdays that begin with what was typed."""
    names = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday"]
    return [name for name in names if name.lower().startswith(value.lower())]


# endregion


# region: images
PICTURES = Path(__file__).parent / "pictures"


@mcp.tool
def sketch(number: int) -> list[Text | Image]:
    """Show a note as a picture."""
    return [Text(NOTES[number]), Image(PICTURES.joinpath("note.png").read_bytes(), "image/png")]


mcp.files("pictures://", PICTURES)
# endregion


# region: logging
@mcp.tool
async def tidy(ctx: Context) -> str:
    """Remove empty notes."""
    empty = [number for number, text in NOTES.items() if not text.strip()]
    for number in empty:
        del NOTES[number]
    await ctx.info({"removed": empty})
    logger.info("Removed %d empty notes", len(empty), extra={"numbers": empty})
    return f"Removed {len(empty)} notes."


# endregion

if __name__ == "__main__":
    mcp.run()
