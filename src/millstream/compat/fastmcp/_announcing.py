"""The methods of a context that tell clients of changes, under the names that each library has for them."""

from typing import Any, Protocol

from millstream._server.calls.changes import Change
from millstream.compat.fastmcp._conversion import as_wire
from millstream.compat.fastmcp._injection import ContextMark

_NOTIFICATIONS = {
    "notifications/tools/list_changed": "tools",
    "notifications/prompts/list_changed": "prompts",
    "notifications/resources/list_changed": "resources",
    "notifications/resources/updated": "updated",
}


class Emits(Protocol):
    """The server, as far as this module needs it."""

    def emit(self, change: Change) -> None:
        """Tell clients of a change."""


class Announcing(ContextMark):
    """Tells clients that something is another: those that listen, and those that subscribed."""

    @property
    def fastmcp(self) -> Any:
        """The server."""
        raise NotImplementedError

    def _announce(self, kind: str, uri: str = "") -> None:
        server: Emits = self.fastmcp
        server.emit(Change(kind, uri))

    async def notify_tools_changed(self) -> None:
        """The list of tools is another one."""
        self._announce("tools")

    async def notify_prompts_changed(self) -> None:
        """The list of prompts is another one."""
        self._announce("prompts")

    async def notify_resources_changed(self) -> None:
        """The list of resources is another one."""
        self._announce("resources")

    async def notify_resource_updated(self, uri: Any) -> None:
        """The content of a resource is another one."""
        self._announce("updated", str(uri))

    send_tool_list_changed = notify_tools_changed
    send_prompt_list_changed = notify_prompts_changed
    send_resource_list_changed = notify_resources_changed

    async def send_notification(self, notification: Any) -> None:
        """Tell a change by the protocol's own value for it: ``ToolListChangedNotification()``.

        Raises:
            ValueError: it announces something else; the context has methods for that.
        """
        wire: dict[str, Any] = as_wire(notification)
        kind = _NOTIFICATIONS.get(str(wire.get("method")))
        params: dict[str, Any] = wire.get("params") or {}
        if kind is None:
            raise ValueError(f"{wire.get('method')} can't be sent so: use ctx.log(…) or ctx.report_progress(…)")
        self._announce(kind, str(params.get("uri", "")))
