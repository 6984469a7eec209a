"""An extension as a part of a server, and as a part of a client."""

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any, cast

from millstream._parts import Host
from millstream._protocol.errors import LocalError
from millstream._server.features.hooks import Middleware
from millstream._server.features.registry import RegisteredExtension as Registered
from millstream.extensions._extension import Extension, filters_notifications, marked_methods
from millstream.extensions._host import EVERY_REVISION, ServerHost

if TYPE_CHECKING:
    from millstream import Server

_HOOKS = ("on_call", "on_read", "on_prompt", "on_list", "on_message")


class ExtensionPart:
    """Opens an extension with the server."""

    def __init__(self, extension: Extension, server: "Server | None" = None) -> None:
        """Create the part. `server` is the server of the extension; None for the extensions in this package."""
        self.extension: Extension = extension
        self.name: str = extension.name
        self.needs: Collection[str] = extension.needs
        self._server = server

    async def open(self, host: Host) -> None:
        """Announce the capability, and register the methods.

        Raises:
            LocalError: The server's configuration lacks something that the extension needs.
        """
        extension = self.extension
        lacking = "" if self._server is None else extension.unmet(self._server)
        if lacking:
            raise LocalError(f"The extension {extension.name!r} can't run: {lacking}")
        server_host = ServerHost(host, extension.name, extension.revisions, experimental=extension.experimental)
        revisions = frozenset(extension.revisions or EVERY_REVISION)
        members = ("extensions", "experimental") if extension.experimental else ("extensions",)
        for member in members if extension.settings is not None else ():
            host.extend(Registered(member, {extension.name: dict(extension.settings or {})}, {}, revisions))
        for marked, handler in marked_methods(extension, "server"):
            if marked.request:
                server_host.method(
                    marked.name,
                    handler,
                    revisions=marked.revisions,
                    header=marked.header,
                    declared=marked.declared,
                )
            else:
                server_host.notification(marked.name, handler, revisions=marked.revisions)
        if filters_notifications(extension):
            server_host.filter_notifications(extension.filter_notification)
        await extension.open(server_host)

    async def close(self) -> None:
        """Close the extension."""
        await self.extension.close()


def check_extensions(extensions: Any) -> tuple[Extension, ...]:
    """Return the extensions of a server.

    Raises:
        TypeError: An item isn't an instance of `Extension`.
        ValueError: An identifier is missing or used twice.
    """
    if isinstance(extensions, str) or not isinstance(extensions, Sequence):
        raise TypeError(f"extensions must be a list: extensions=[{type(extensions).__name__}(…)]")
    names: set[str] = set()
    for each in cast("Sequence[object]", extensions):
        if not isinstance(each, Extension):
            description = f"the class {each.__name__}" if isinstance(each, type) else repr(each)
            raise TypeError(
                f"extensions takes instances of subclasses of millstream.extensions.Extension, not {description}"
            )
        prefix, slash, name = each.name.partition("/")
        if not (prefix and slash and name):
            raise ValueError(
                f"{type(each).__name__}.name is {each.name!r}: use an identifier with a prefix, such as "
                "'com.example/stock'"
            )
        if each.name in names:
            raise ValueError(f"Two extensions have the name {each.name!r}. Remove one.")
        names.add(each.name)
    return tuple(cast("Sequence[Extension]", extensions))


def has_hooks(extension: Extension) -> bool:
    """Return whether an extension overrides a middleware hook."""
    return any(getattr(type(extension), hook) is not getattr(Middleware, hook) for hook in _HOOKS)
