"""Change notifications: one bus inside the server feeds both eras.

Whoever shows changes to a client (stand-alone streams, HTTP+SSE, stdio, `subscriptions/listen`) adds a `Watcher`.
Changes are hints about state, encoded once for each kind and not kept.
"""

from collections.abc import Callable, Collection
from typing import Protocol

from msgspec import Struct

from millstream._protocol.jsonrpc import notification_message
from millstream._protocol.metadata import ClientInfo

LIST_CHANGED = {
    "tools": "notifications/tools/list_changed",
    "prompts": "notifications/prompts/list_changed",
    "resources": "notifications/resources/list_changed",
}
UPDATED = "notifications/resources/updated"

_LIST_MESSAGES = {kind: notification_message(method) for kind, method in LIST_CHANGED.items()}


class ServerChange(Struct, frozen=True, gc=False):
    """A list that changed (`kind` tools, prompts or resources), or one resource (`kind` updated, with its URI), or
    `ANY_UPDATE`.
    """

    kind: str
    uri: str = ""

    @property
    def method(self) -> str:
        return LIST_CHANGED.get(self.kind, UPDATED)


class Broadcast(ServerChange, frozen=True, gc=False):
    """A notification of an extension, for every session of a client that declared it."""

    extension: str = ""
    """Its identifier; empty for every session."""
    message: bytes = b""

    def reaches(self, client: ClientInfo) -> bool:
        """Return whether a client declared the extension."""
        return not self.extension or self.extension in client.extensions or self.extension in client.experimental


ANY_UPDATE = ServerChange("updated")
"""Updates may have been missed: whoever watches resources tells each of them."""


def affected_uris(change: ServerChange, watched: Collection[str]) -> Collection[str]:
    """Which of the resources that somebody watches a change is about."""
    if change is ANY_UPDATE:
        return sorted(watched)
    return (change.uri,) if change.kind == "updated" and change.uri in watched else ()


Watcher = Callable[[ServerChange, bytes], None]
"""Called in the loop with the change and its encoded notification; must not block or raise."""


def encode_change(change: ServerChange) -> bytes:
    """The notification of a change, without anything of a particular subscription."""
    if isinstance(change, Broadcast):
        return change.message
    prepared = _LIST_MESSAGES.get(change.kind)
    return prepared if prepared is not None else notification_message(UPDATED, {"uri": change.uri})


class ChangeSource(Protocol):
    """Asks elsewhere for changes of resources."""

    def follow(self, owner: object, uris: Collection[str]) -> None:
        """Ask for changes of these resources from now on, instead of those that the same owner wanted before."""

    async def followed(self, uris: Collection[str]) -> None:
        """Wait until what is asked for was granted or refused, for a limited time."""


class ChangeFeed:
    """The watchers of one server."""

    __slots__ = ("_watchers", "source")

    def __init__(self) -> None:
        self._watchers: dict[object, Watcher] = {}
        self.source: ChangeSource | None = None
        """Where changes have to be asked for; None where all of them happen here."""

    def follow(self, owner: object, uris: Collection[str]) -> None:
        """Set the resources that a stream or connection follows from now on; none at its end."""
        if self.source is not None:
            self.source.follow(owner, uris)

    async def followed(self, uris: Collection[str]) -> None:
        """Wait until changes of the resources that are followed here aren't missed any more."""
        if self.source is not None and uris:
            await self.source.followed(uris)

    def watch(self, watcher: Watcher) -> Callable[[], None]:
        """Add a watcher; the returned function removes it."""
        token = object()
        self._watchers[token] = watcher

        def stop() -> None:
            self._watchers.pop(token, None)

        return stop

    def __len__(self) -> int:
        """Return the number of watchers."""
        return len(self._watchers)

    def emit(self, change: ServerChange) -> None:
        """Tell every watcher."""
        if not self._watchers:
            return
        message = encode_change(change)
        for watcher in list(self._watchers.values()):
            watcher(change, message)
