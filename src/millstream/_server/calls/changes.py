"""Change notifications: one bus inside the server for both eras.

Code that forwards changes to a client (stand-alone streams, HTTP+SSE, stdio, `subscriptions/listen`) adds a `Watcher`.
Changes are hints about state. Each kind is encoded once, and none are stored.
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
    """A changed list (`kind` is tools, prompts, or resources), a changed resource (`kind` is updated, with a URI), or
    `ANY_UPDATE`.
    """

    kind: str
    uri: str = ""

    @property
    def method(self) -> str:
        return LIST_CHANGED.get(self.kind, UPDATED)


class Broadcast(ServerChange, frozen=True, gc=False):
    """A notification of an extension, for all sessions whose client declared it."""

    extension: str = ""
    """The extension's identifier, or an empty string for every session."""
    message: bytes = b""

    def reaches(self, client: ClientInfo) -> bool:
        """Return whether a client declared the extension."""
        return not self.extension or self.extension in client.extensions or self.extension in client.experimental


ANY_UPDATE = ServerChange("updated")
"""Updates may have been lost. Watchers of resources must report all of them as changed."""


def affected_uris(change: ServerChange, watched: Collection[str]) -> Collection[str]:
    """Return the watched resources that a change affects."""
    if change is ANY_UPDATE:
        return sorted(watched)
    return (change.uri,) if change.kind == "updated" and change.uri in watched else ()


Watcher = Callable[[ServerChange, bytes], None]
"""Called in the event loop with the change and its encoded notification. It must not block or raise."""


def encode_change(change: ServerChange) -> bytes:
    """Return the encoded notification of a change, without subscription data."""
    if isinstance(change, Broadcast):
        return change.message
    prepared = _LIST_MESSAGES.get(change.kind)
    return prepared if prepared is not None else notification_message(UPDATED, {"uri": change.uri})


class ChangeSource(Protocol):
    """A source of resource changes outside this server, such as an upstream."""

    def check_room(self, owner: str, uris: Collection[str]) -> None:
        """Check that a caller can follow more resources.

        Raises:
            ProtocolError: The caller's share is used up, or the maximum for all callers.
        """

    def follow(self, follower: object, owner: str, uris: Collection[str]) -> None:
        """Replace the resources that a stream or connection of a caller follows."""

    async def wait_until_followed(self, uris: Collection[str]) -> None:
        """Wait, for a limited time, until the subscriptions are granted or refused."""


class ChangeFeed:
    """The watchers of changes on one server."""

    def __init__(self) -> None:
        self._watchers: dict[object, Watcher] = {}
        self.source: ChangeSource | None = None
        """The outside source of changes, or None if all changes happen here."""

    def check_room(self, owner: str, uris: Collection[str]) -> None:
        """See `ChangeSource`."""
        if self.source is not None:
            self.source.check_room(owner, uris)

    def follow(self, follower: object, owner: str, uris: Collection[str]) -> None:
        """Replace the resources that a stream or connection of a caller follows. Pass none when it ends."""
        if self.source is not None:
            self.source.follow(follower, owner, uris)

    async def wait_until_followed(self, uris: Collection[str]) -> None:
        """Wait until changes of the followed resources can't be missed."""
        if self.source is not None and uris:
            await self.source.wait_until_followed(uris)

    def watch(self, watcher: Watcher) -> Callable[[], None]:
        """Add a watcher. Return a function that removes it."""
        token = object()
        self._watchers[token] = watcher

        def stop() -> None:
            self._watchers.pop(token, None)

        return stop

    def __len__(self) -> int:
        """Return the number of watchers."""
        return len(self._watchers)

    def emit(self, change: ServerChange) -> None:
        """Notify every watcher."""
        if not self._watchers:
            return
        message = encode_change(change)
        for watcher in list(self._watchers.values()):
            watcher(change, message)
