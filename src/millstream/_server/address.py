"""The paths at which a server serves all of its items, or a set of them.

Services, sign-in, and transports need them.
"""

from typing import Self

from msgspec import Struct

from millstream._config import Settings


class Address(Struct, frozen=True):
    """Paths of a server where it serves all of its items, or a set of them."""

    name: str
    """Name of the set, or empty at the main address."""
    path: str
    """Path of Streamable HTTP."""
    sse: str
    """Path of HTTP+SSE."""
    messages: str
    """Path of messages to HTTP+SSE."""
    websocket: str = "/ws"
    tools: str = "/tools/"
    """Prefix of the paths of tools."""
    openapi: str = "/openapi.json"
    scopes: frozenset[str] = frozenset()
    """Scopes that a caller needs here. All are required."""
    groups: tuple[str, ...] = ()
    """Values of the claim `groups`, of which a caller needs one."""
    limit: str = ""
    """Maximum rate of tool calls per caller."""

    @classmethod
    def main(cls, settings: Settings) -> Self:
        """Return the main address of a server."""
        return cls("", settings.path, settings.sse_path, settings.messages_path)

    @property
    def endpoints(self) -> tuple[str, ...]:
        """Paths to which clients connect."""
        return f"{self.path.rstrip('/')}/", self.path, self.sse, self.websocket

    @property
    def keys(self) -> frozenset[str]:
        """Everything that an address can serve: paths, and prefixes of paths."""
        return frozenset((*self.endpoints, *self.paths, self.messages.rstrip("/"), self.tools, self.openapi))

    @property
    def paths(self) -> tuple[str, ...]:
        """Paths of MCP over HTTP."""
        return self.path, self.path.rstrip("/") + "/", self.sse, self.messages
