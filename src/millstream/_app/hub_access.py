"""``mcp.hub``: the hub of a server, for the program around it.

It can be used from the first line of a program to the last: before the first request, in the lifespan of the server
or of the application that it is mounted in, and after the server was idle for long. What needs the hub opens it.
"""

from typing import TYPE_CHECKING, Any

from millstream._app.runtimes import Runtimes
from millstream._protocol.errors import LocalError

if TYPE_CHECKING:
    from millstream._protocol.principal import Principal
    from millstream.hub import Event, Hub, HubStats, Member, PublishResult
    from millstream.hub._bus import Bridge


class HubAccess:
    """What a program does with the hub. Arguments and errors are those of `Hub`."""

    __slots__ = ("_runtimes",)

    def __init__(self, runtimes: Runtimes) -> None:
        self._runtimes = runtimes

    async def _open(self) -> "Hub":
        hub = self._runtimes.hub
        if hub is None:
            hub = (await self._runtimes.start()).hub
        if hub is None:
            raise no_hub(self._runtimes.definition.name)
        return hub

    async def publish(
        self, channel: str, data: Any, *, event: str | None = None, id: str | None = None
    ) -> "PublishResult":
        """Publish to a channel, see `Hub.publish`."""
        return await (await self._open()).publish(channel, data, event=event, id=id)

    async def send(
        self,
        client_id: str,
        data: Any,
        *,
        event: str | None = None,
        id: str | None = None,
        principal: "Principal | None" = None,
    ) -> "PublishResult":
        """Publish to one client, see `Hub.send`."""
        return await (await self._open()).send(client_id, data, event=event, id=id, principal=principal)

    async def presence(self, channel: str) -> "list[Member]":
        """The clients on a channel, see `Hub.presence`."""
        return await (await self._open()).presence(channel)

    async def history(self, channel: str, count: int = 50) -> "list[Event]":
        """The newest events of a channel, see `Hub.history`."""
        return await (await self._open()).history(channel, count)

    def from_bus(self, broker: Any, subject: str, *, to: str, group: str = "millstream", **options: Any) -> None:
        """Publish what comes from a message bus, before the server starts; needs the extra ``bus``.

        A message is acknowledged once the hub has the event. Its id on the bus is the event's: what comes again within
        two minutes isn't published again. A message that can't be an event is rejected, and logged.

        Args:
            broker: of FastStream: a `RabbitBroker`, `KafkaBroker`, `NatsBroker`, or `RedisBroker`. The server starts
                and stops it.
            subject: what to read. ``*`` stands for one segment, ``>`` for the rest; Redis has no wildcards.
            to: the channel. ``{key}`` is what the wildcards stand for, on a topic of Kafka without wildcards the key
                of the message, and ``{subject}`` the whole subject.
            group: workers of one group share the messages.
            options: of ``broker.subscriber``, such as ``stream`` (which NATS needs) or ``exchange``.

        Raises:
            TypeError: that's no broker.
            ValueError: a name can't be one, or a bridge in the other direction would make a circle.
        """
        from millstream.hub._bus import InboundBridge  # noqa: PLC0415  few programs have a bus

        name = self._runtimes.definition.name
        self._bridge(InboundBridge(broker, subject, to, name=name, group=group, options=options))

    def to_bus(self, broker: Any, channels: str, *, to: str, group: str = "millstream", **options: Any) -> None:
        """Send what is published to a message bus, before the server starts; needs the extra ``bus``.

        One worker at a time sends, in the order of the hub. Its position is in the store, so nothing is left out after
        a restart with a store that lasts. A message may come twice, with the same id.

        Args:
            broker: as `from_bus`.
            channels: a channel, or a pattern of channels.
            to: the subject, topic, routing key, or stream. ``{key}`` is what the wildcards stand for, ``{channel}`` the
                whole channel.
            group: servers that share a store and send the same events to different buses name different groups.
            options: of ``broker.publish``.

        Raises:
            TypeError, ValueError: as `from_bus`.
        """
        from millstream.hub._bus import OutboundBridge  # noqa: PLC0415

        name = self._runtimes.definition.name
        self._bridge(OutboundBridge(broker, channels, to, name=name, group=group, options=options))

    def _bridge(self, bridge: "Bridge") -> None:
        from millstream.hub._bus import check_circle  # noqa: PLC0415

        bridges = self._runtimes.definition.bridges
        check_circle(bridges, bridge)
        bridges.append(bridge)

    def stats(self) -> "HubStats":
        """The state of this worker's part of the hub.

        Raises:
            LocalError: the hub has not been opened yet.
        """
        hub = self._runtimes.hub
        if hub is None:
            raise LocalError("The hub is not open here yet. The first request opens it, and so does a publication.")
        return hub.stats()


def no_hub(name: str) -> LocalError:
    """The error for a program that wants a hub from a server that serves none."""
    return LocalError(f'{name!r} serves no hub. Write Server({name!r}, serve="hub"), or run it with --serve hub.')
