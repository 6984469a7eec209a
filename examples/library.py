"""A library: resources, templates, completion, and subscriptions. ``millstream dev library.py``."""

# region: fixed
from dataclasses import dataclass

from millstream import ProtocolError, ResourceLink, Server

mcp = Server("library")


@dataclass
class Book:
    title: str
    pages: int


BOOKS = {"momo": Book("Momo", 304), "emma": Book("Emma", 474)}
LENT: list[str] = []


@mcp.resource("library://opening-hours", mime_type="text/plain")
def opening_hours() -> str:
    """When the library is open."""
    return "Monday to Friday, 9 to 17"


# endregion


# region: template
@mcp.resource("library://books/{name}")
def book(name: str) -> Book:
    """One book by its short name."""
    if name not in BOOKS:
        raise ProtocolError(-32602, f"There is no book {name!r}.")
    return BOOKS[name]


# endregion


# region: complete
@mcp.complete("library://books/{name}", argument="name")
def book_names(value: str, arguments: dict[str, str]) -> list[str]:
    """Short names that begin with what the person typed."""
    return [name for name in BOOKS if name.startswith(value)]


# endregion


# region: updated
@mcp.resource("library://lent", mime_type="application/json")
def lent() -> list[str]:
    """Books that are on loan."""
    return LENT


@mcp.tool
async def lend(name: str) -> ResourceLink:
    """Lend a book."""
    LENT.append(name)
    await mcp.resource_updated("library://lent")
    return ResourceLink(f"library://books/{name}", BOOKS[name].title)


# endregion


# region: private
@mcp.resource("library://staff/rota", scopes=["staff"], tags=["internal"])
def rota() -> str:
    """Who works when."""
    return "Ada: Monday. Ben: Tuesday."


# endregion

if __name__ == "__main__":
    mcp.run()
