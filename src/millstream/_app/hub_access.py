"""``mcp.hub``: the hub of a server, for its program.

It's usable at any time: before the first request, in the lifespan of the server or of the application that it's mounted
in, and after a long idle time. The first use opens the hub.
"""

from typing import TYPE_CHECKING, Any

from millstream._app.runtimes import Runtimes
from millstream._protocol.errors import LocalError

if TYPE_CHECKING:
    from millstream._protocol.principal import Principal
    from millstream.hub import Event, Hub, HubStats, Member, PublishResult
    from millstream.hub._bus import Bridge


class HubAccess:
    """The hub for programs. Arguments and errors are those of `Hub`."""

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
        """Return the clients on a channel, see `Hub.presence`."""
        return await (await self._open()).presence(channel)

    async def history(self, channel: str, count: int = 50) -> "list[Event]":
        """Return the newest events of a channel, see `Hub.history`."""
        return await (await self._open()).history(channel, count)

    def from_bus(self, broker: Any, subject: str, *, to: str, group: str = "millstream", **options: Any) -> None:
        """Publish messages of a message bus, declared before the server starts; requires the extra ``bus``.

        A message is acknowledged once the hub has stored the event. The event has the message's id, so a redelivery
        within two minutes isn't published again. A message that isn't a valid event is rejected and logged.

        Args:
            broker: FastStream broker: a `RabbitBroker`, `KafkaBroker`, `NatsBroker`, or `RedisBroker`. The server
                starts and stops it.
            subject: subject to read. ``*`` matches one segment, ``>`` the rest; Redis doesn't support wildcards.
            to: the channel. ``{key}`` is the part matched by the wildcards, or the message key on a Kafka topic without
                wildcards; ``{subject}`` is the whole subject.
            group: workers of one group share the messages.
            options: options of ``broker.subscriber``, such as ``stream`` (which NATS needs) or ``exchange``.

        Raises:
            TypeError: the broker is unsupported.
            ValueError: a name is invalid, or a bridge in the other direction would form a loop.
        """
        from millstream.hub._bus import InboundBridge  # noqa: PLC0415  few programs have a bus

        name = self._runtimes.definition.name
        self._bridge(InboundBridge(broker, subject, to, name=name, group=group, options=options))

    def to_bus(self, broker: Any, channels: str, *, to: str, group: str = "millstream", **options: Any) -> None:
        """Send published events to a message bus, declared before the server starts; requires the extra ``bus``.

        One worker at a time sends, in the order of the hub. Its position is stored, so with a persistent store no event
        is lost in a restart. A message may be sent twice, with the same id.

        Args:
            broker: as for `from_bus`.
            channels: a channel, or a pattern of channels.
            to: subject, topic, routing key, or stream. ``{key}`` is the part matched by the wildcards, ``{channel}``
                the whole channel.
            group: servers that share a store and send the same events to different buses need different groups.
            options: options of ``broker.publish``.

        Raises:
            TypeError, ValueError: as for `from_bus`.
        """
        from millstream.hub._bus import OutboundBridge  # noqa: PLC0415

        name = self._runtimes.definition.name
        self._bridge(OutboundBridge(broker, channels, to, name=name, group=group, options=options))

    def _bridge(self, bridge: "Bridge") -> None:
        from millstream.hub._bus import check_loop  # noqa: PLC0415

        bridges = self._runtimes.definition.bridges
        check_loop(bridges, bridge)
        bridges.append(bridge)

    def stats(self) -> "HubStats":
        """Return the statistics of this worker's part of the hub.

        Raises:
            LocalError: the hub hasn't been opened yet.
        """
        hub = self._runtimes.hub
        if hub is None:
            raise LocalError("The hub isn't open here yet. The first request or publication opens it.")
        return hub.stats()


def no_hub(name: str) -> LocalError:
    """Return the error for a program that uses the hub of a server without one."""
    return LocalError(f'{name!r} serves no hub. Write Server({name!r}, serve="hub"), or run it with --serve hub.')
