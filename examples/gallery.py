"""A gallery: tools that return images and files, and a folder of resources. ``millstream dev gallery.py``."""

# region: image
import struct
import zlib
from pathlib import Path

from millstream import EmbeddedResource, Image, Server, Text

mcp = Server("gallery")


def png(color: tuple[int, int, int], size: int = 64) -> bytes:
    """Draw a square of one color. A real tool would use a library, such as Pillow."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        checksum = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + checksum

    rows = (b"\0" + bytes(color) * size) * size
    header = struct.pack(">IIBBBBB", size, size, 8, 2, 0, 0, 0)
    chunks = [chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


@mcp.tool
def swatch(red: int, green: int, blue: int) -> Image:
    """Show a color."""
    return Image(png((red, green, blue)), "image/png")


# endregion


# region: several
@mcp.tool
def compare() -> list[Text | Image]:
    """Show the colors of this spring and this fall."""
    return [
        Text("Spring:"),
        Image(png((120, 190, 90)), "image/png"),
        Text("Fall:"),
        Image(png((190, 110, 40)), "image/png"),
    ]


# endregion


# region: file
@mcp.tool
def price_list() -> EmbeddedResource:
    """Return all prices as a CSV file."""
    csv = "title,price\nSpring,120\nFall,80\n"
    return EmbeddedResource("gallery://prices.csv", text=csv, mime_type="text/csv")


# endregion


# region: upload
@mcp.tool
def size_of(image: bytes) -> str:
    """Return the size of a PNG image."""
    width, height = struct.unpack(">II", image[16:24])
    return f"{width} by {height} pixels"


# endregion


# region: folder
mcp.files("catalog://", Path(__file__).parent / "catalog", title="Catalog")
# endregion

if __name__ == "__main__":
    mcp.run()
