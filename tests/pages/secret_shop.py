"""A server with tools that take secrets, marked by name or by schema, and values of every shape."""

from dataclasses import dataclass
from typing import Annotated

from millstream import Field, Server

mcp = Server("secrets", serve="all")


@dataclass
class Account:
    user: str
    password: str


@dataclass
class Line:
    sku: str
    count: int = 1


@mcp.tool
def sign_in(account: Account, code: Annotated[str, Field(extra={"writeOnly": True})] = "", note: str = "") -> str:
    """Take a password."""
    return f"{account.user} {len(account.password)} {len(code)} {note}"


@mcp.tool
def order(lines: list[Line], count: int = 3, note: str = "") -> str:
    """Take many lines."""
    return f"{lines} {count} {note}"


@mcp.tool
def other(text: str = "") -> str:
    """Something else."""
    return text


@mcp.prompt
def letter(to: str, about: str = "") -> str:
    """Write to somebody."""
    return f"Dear {to}, {about}"
