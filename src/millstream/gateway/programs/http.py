"""What a program serves over HTTP beside MCP: its check of tokens, and its own paths."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from msgspec import Struct

SIGN_IN = "/.well-known/oauth-"
"""What the paths begin with that say how to sign in."""
_KNOWN_MIDDLEWARE = frozenset(
    (
        "AuthContextMiddleware",
        "AuthenticationMiddleware",
        "CORSMiddleware",
        "HostOriginGuardMiddleware",
        "RequestContextMiddleware",
    )
)
"""What may stand in front of MCP. This server does the same: it checks tokens, Host, and Origin, and sends CORS headers
to the origins that the program names.
"""


class OwnPath(Struct, frozen=True):
    """A path of the program's own."""

    path: str
    methods: frozenset[str]
    """Of HTTP; empty for all."""
    below: bool
    """Everything below the path, too."""


class HttpSide:
    """The application that a program would serve over HTTP, taken apart through Starlette's public attributes."""

    def __init__(self, application: Any) -> None:
        """Look at an application.

        Args:
            application: of Starlette, as the library makes it.
        """
        self.application: Any = application
        self._mcp: Any = next((route for route in application.routes if _holder_of(route) is not None), None)
        endpoint = getattr(self._mcp, "endpoint", None)
        inner = getattr(endpoint, "app", None)
        self.required_scopes: tuple[str, ...] = tuple(getattr(endpoint, "required_scopes", None) or ())
        """Scopes that every caller needs."""
        self.metadata_url: str = str(getattr(endpoint, "resource_metadata_url", None) or "")
        """Where clients find out how to sign in; empty where the program doesn't say."""
        self.backend: Any = _backend_of(application)
        """Starlette's `AuthenticationBackend` that reads tokens; None where the program checks none."""
        self.protected: bool = inner is not None or self.backend is not None
        """Callers need a token."""

    @property
    def mcp_path(self) -> str:
        """Where the program serves MCP."""
        return str(getattr(self._mcp, "path", ""))

    @property
    def low_level(self) -> Any:
        """The low-level server behind the application; None if the library doesn't show it."""
        return getattr(getattr(_holder_of(self._mcp), "session_manager", None), "app", None)

    def unknown_middleware(self) -> list[str]:
        """Return the names of middleware classes that this package can't run in front of MCP."""
        names = [str(getattr(each.cls, "__name__", each.cls)) for each in self.application.user_middleware]
        return [name for name in names if name not in _KNOWN_MIDDLEWARE]

    def cors_origins(self) -> tuple[str, ...]:
        """Return the origins whose pages may read replies, as the program's middleware names them."""
        options = [each.kwargs for each in self.application.user_middleware if hasattr(each, "kwargs")]
        return tuple(str(origin) for each in options for origin in each.get("allow_origins", ()))

    def own_paths(self) -> Iterator[OwnPath]:
        """Yield the paths beside MCP: those to sign in, and those of the program."""
        for route in self.application.routes:
            if route is self._mcp or not hasattr(route, "path"):
                continue
            below = not hasattr(route, "methods")  # of Starlette's `Mount`
            yield OwnPath(route.path or "/", frozenset(getattr(route, "methods", None) or ()), below)


def _holder_of(route: Any) -> Any:
    """Return the endpoint of a route that has a session manager, also behind a check of tokens."""
    endpoint = getattr(route, "endpoint", None)
    for each in (endpoint, getattr(endpoint, "app", None)):
        if hasattr(each, "session_manager"):
            return each
    return None


def _backend_of(application: Any) -> Any:
    middleware: Sequence[Any] = application.user_middleware
    for each in middleware:
        options: Mapping[str, Any] = getattr(each, "kwargs", {})
        if hasattr(options.get("backend"), "authenticate"):
            return options["backend"]
    return None
