"""Files in and out: a program sends a cover, a model looks at it, and a client reads the list as a file."""

from pathlib import Path

from millstream import EmbeddedResource, Image, Server, ToolError

mcp = Server("covers")
FOLDER = Path("covers")
FOLDER.mkdir(exist_ok=True)


@mcp.tool
def upload(name: str, image: bytes) -> str:
    """Store the cover of a book, a PNG image of at most 1 MB."""
    if not image.startswith(b"\x89PNG\r\n\x1a\n") or len(image) > 1_000_000:
        raise ToolError("Send a PNG image of at most 1 MB.")
    if not name.isalnum():
        raise ToolError("A name has only letters and digits.")
    (FOLDER / f"{name}.png").write_bytes(image)
    return f"Stored {name}, {len(image)} bytes."


@mcp.tool
def cover(name: str) -> Image:
    """Show the cover of a book."""
    path = FOLDER / f"{name}.png"
    if not name.isalnum() or not path.exists():
        raise ToolError(f"There is no cover {name!r}. Call upload first.")
    return Image(path.read_bytes(), "image/png")


@mcp.tool
def overview() -> EmbeddedResource:
    """Return a list of all covers as a CSV file."""
    rows = "".join(f"{path.stem},{path.stat().st_size}\n" for path in sorted(FOLDER.glob("*.png")))
    return EmbeddedResource("covers://overview.csv", text=f"name,bytes\n{rows}", mime_type="text/csv")


mcp.files("covers://files/", FOLDER)

if __name__ == "__main__":
    mcp.run()
