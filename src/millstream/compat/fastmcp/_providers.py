"""The two providers of fastmcp that the door has: an OpenAPI document and a server elsewhere, for `add_provider`."""

from collections.abc import Callable
from typing import Any

from millstream.compat.fastmcp._openapi import offer_api


class OpenAPIProvider:
    """The operations of an API; the options are those of `FastMCP.from_openapi`."""

    def __init__(self, openapi_spec: Any, client: Any = None, **options: Any) -> None:
        self._given: tuple[Any, Any] = (openapi_spec, client)
        self._options = options

    def offer(self, server: Any) -> None:
        """Let a server offer them.

        Raises:
            ValueError: that's no OpenAPI document.
        """
        offer_api(server, *self._given, **self._options)


class ProxyProvider:
    """What a server elsewhere offers: ``ProxyProvider(lambda: ProxyClient(url))``."""

    def __init__(self, client_factory: Callable[[], Any]) -> None:
        self._factory = client_factory

    def offer(self, server: Any) -> None:
        """Let a server offer it.

        Raises:
            TargetError: it names no server.
        """
        server.put_behind(self._factory)


def offer_of(provider: Any, server: Any) -> None:
    """Let a server offer what a provider has.

    Raises:
        TypeError: it's a provider of another kind.
    """
    if not isinstance(provider, OpenAPIProvider | ProxyProvider):
        raise TypeError(
            f"{type(provider).__name__} can't be added here, only OpenAPIProvider and ProxyProvider of "
            "millstream.compat.fastmcp.standalone: add tools, resources and prompts, or mount a server"
        )
    provider.offer(server)
