"""The server that receives damaged requests of signed-in users: an authorization server, keys, and every route."""

import os
import re
from typing import Any

from fuzz.people import CLIENT, KEY, SECRET
from millstream import Context, Server, auth
from millstream.auth.providers import User


class Everybody:
    """An unlimited number of users, because login attempts and consents per user are limited."""

    async def check(self, name: str, password: str) -> User | None:
        """Return the user with this name."""
        return self.find(name) if password == "correct horse" else None

    def find(self, subject: str) -> User | None:
        """Return the user."""
        return User(subject, "Ada", ("*",)) if re.fullmatch(r"ada\d{1,9}", subject) else None

    def epoch(self) -> int:
        """Return a constant, because no user is removed."""
        return 0


mcp = Server(
    "shop",
    serve="all",
    auth=[
        auth.issuer(
            os.environ["SHOP_URL"],
            users=[
                Everybody(),
                auth.login_provider(
                    "github", allow=["*"], client_id="a", client_secret="b", base_url="http://127.0.0.1:9"
                ),
                auth.identity_provider("http://127.0.0.1:9", scopes=["orders:write"]),
            ],
            clients=[auth.client(CLIENT, secret=SECRET, scopes=["orders:write"])],
            scope_descriptions={"orders:read": "Look at orders", "orders:write": "Order books"},
        ),
        auth.keys(KEY),
    ],
)


@mcp.tool
def add(a: int, b: int = 2, note: str = "") -> int:
    """Add two numbers."""
    return a + b


@mcp.tool(scopes=["orders:write"])
async def order(isbn: str, ctx: Context, copies: list[dict[str, Any]] | None = None) -> str:
    """Order a book."""
    await ctx.progress(1, 2, "half")
    return isbn


@mcp.resource("shop://{isbn}")
def book(isbn: str) -> str:
    """A book."""
    return isbn


@mcp.prompt
def praise(word: str) -> str:
    """Praise something."""
    return word
