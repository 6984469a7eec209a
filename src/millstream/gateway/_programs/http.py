"""The HTTP side of a program: its token check, and its paths besides MCP."""

from collections.abc import Iterator, Mapping
from typing import Any

from msgspec import Struct

SIGN_IN = "/.well-known/oauth-"
"""Prefix of the sign-in metadata paths."""
_KNOWN_MIDDLEWARE = frozenset(
    (
        "AuthContextMiddleware",
        "AuthenticationMiddleware",
        "CORSMiddleware",
        "HostOriginGuardMiddleware",
        "RequestContextMiddleware",
    )
)
"""Middleware that may wrap MCP. This server replaces it: it checks tokens, Host, and Origin, and sends CORS headers
to the origins that the program allows.
"""


class OwnPath(Struct, frozen=True):
    """A path of the program besides MCP."""

    path: str
    methods: frozenset[str]
    """HTTP methods; empty for all."""
    below: bool
    """Whether it includes everything below the path."""


class HttpSide:
    """The application that a program would serve over HTTP, inspected through Starlette's public attributes."""

    def __init__(self, application: Any) -> None:
        """Inspect an application.

        Args:
            application: Starlette application that the library creates.
        """
        self.application: Any = application
        self._mcp: Any = next((route for route in application.routes if _holder_of(route) is not None), None)
        self.mcp_path: str = getattr(self._mcp, "path", "")
        """Path of MCP."""
        endpoint = getattr(self._mcp, "endpoint", None)
        self.required_scopes: tuple[str, ...] = tuple(getattr(endpoint, "required_scopes", None) or ())
        """Scopes that every caller needs."""
        options: list[Mapping[str, Any]] = [each.kwargs for each in application.user_middleware]
        backends = [each["backend"] for each in options if hasattr(each.get("backend"), "authenticate")]
        self.backend: Any = backends[0] if backends else None
        """Starlette's `AuthenticationBackend` that checks tokens; None if the program doesn't."""
        self.protected: bool = hasattr(endpoint, "app") or self.backend is not None
        """Whether callers need a token."""
        self.cors_origins: tuple[str, ...] = tuple(
            str(origin) for each in options for origin in each.get("allow_origins", ())
        )
        """Origins that the program's CORS middleware allows."""
        names = [str(getattr(each.cls, "__name__", each.cls)) for each in application.user_middleware]
        self.unknown_middleware: list[str] = [name for name in names if name not in _KNOWN_MIDDLEWARE]
        """Names of middleware classes that can't run in front of MCP here."""

    @property
    def session_manager(self) -> Any:
        """The object that serves sessions; None if the library doesn't expose it."""
        return getattr(_holder_of(self._mcp), "session_manager", None)

    @property
    def low_level(self) -> Any:
        """The low-level server behind the application; None if the library doesn't expose it."""
        return getattr(self.session_manager, "app", None)

    def own_paths(self) -> Iterator[OwnPath]:
        """Yield the paths besides MCP: sign-in metadata, and the program's own."""
        for route in self.application.routes:
            if route is self._mcp or not hasattr(route, "path"):
                continue
            below = not hasattr(route, "methods")  # Starlette's `Mount`
            yield OwnPath(route.path or "/", frozenset(getattr(route, "methods", None) or ()), below)


def _holder_of(route: Any) -> Any:
    """Return the endpoint of a route that has a session manager, unwrapping a token check."""
    endpoint = getattr(route, "endpoint", None)
    for each in (endpoint, getattr(endpoint, "app", None)):
        if hasattr(each, "session_manager"):
            return each
    return None
