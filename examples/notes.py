"""Notes: tools with types, limits, hints, and results. ``millstream dev notes.py``."""

# region: find
from dataclasses import dataclass
from typing import Annotated, Literal

from millstream import Field, Server, Text, ToolAnnotations, ToolResult

mcp = Server("notes", instructions="Call find before you change a note.")

NOTES = {1: "Buy milk", 2: "Call Ada about the milk"}


@dataclass
class Note:
    number: int
    text: str


@mcp.tool
def find(
    words: Annotated[str, Field(description="Text to look for", min_length=2)],
    order: Literal["newest", "oldest"] = "newest",
) -> list[Note]:
    """Find notes that contain some text."""
    notes = [Note(number, text) for number, text in NOTES.items()]
    matches = [note for note in notes if words.lower() in note.text.lower()]
    return matches if order == "oldest" else matches[::-1]


# endregion


# region: docstring
@mcp.tool
def add(text: str, urgent: bool = False) -> Note:
    """Add a note.

    Args:
        text: What to remember, in one sentence.
        urgent: Begin the note with an exclamation mark.
    """
    number = max(NOTES, default=0) + 1
    NOTES[number] = f"! {text}" if urgent else text
    return Note(number, NOTES[number])


# endregion


# region: hints
@mcp.tool(annotations=ToolAnnotations(read_only_hint=True))
def count() -> int:
    """Count the notes."""
    return len(NOTES)


@mcp.tool(annotations=ToolAnnotations(destructive_hint=True, idempotent_hint=True))
def clear() -> str:
    """Delete every note."""
    NOTES.clear()
    return "All notes are gone."


# endregion


# region: result
@mcp.tool
def stats() -> ToolResult:
    """Count notes and words."""
    words = sum(len(text.split()) for text in NOTES.values())
    return ToolResult(
        content=[Text(f"{len(NOTES)} notes with {words} words")],
        structured={"notes": len(NOTES), "words": words},
    )


# endregion


# region: options
@mcp.tool(
    title="Search the archive",
    timeout=10,
    limit="10/minute",
    tags=["beta"],
    enabled=False,
)
async def search_archive(year: Annotated[int, Field(ge=1990, le=2030)]) -> list[str]:
    """Search the notes of a past year."""
    return [f"{year}: {text}" for text in NOTES.values()]


# endregion


# region: switch
@mcp.tool
def use_beta_tools(on: bool) -> str:
    """Switch the tools that are still being tested on or off."""
    if on:
        mcp.enable(tag="beta")
    else:
        mcp.disable(tag="beta")
    return "Done."


# endregion

if __name__ == "__main__":
    mcp.run()
