"""The gateway as a part of the server: opens upstreams, and keeps their items in the registry."""

import asyncio
import logging
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from millstream._parts import Host
from millstream._server.calls.changes import Change
from millstream.gateway.catalog import METHODS
from millstream.gateway.items import UpstreamTool
from millstream.gateway.parked import ParkedCalls
from millstream.gateway.processes import ProcessPool
from millstream.gateway.upstream import Upstream, UpstreamConfig

if TYPE_CHECKING:
    from millstream._server.features.hooks import Hooks

logger = logging.getLogger("millstream.gateway")

_CHANGE_OF = {"tools": "tools", "resources": "resources", "templates": "resources", "prompts": "prompts"}


class Definition(Protocol):
    """What the gateway needs of the server's definition."""

    upstreams: list[UpstreamConfig]
    hooks: "Hooks | None"
    instructions: str


class GatewayPart:
    """Connects to the upstreams of a server and offers what they have."""

    name: str = "gateway"
    needs: Collection[str] = ("lifespan",)

    def __init__(self, definition: Definition) -> None:
        self.definition: Definition = definition
        self.upstreams: dict[str, Upstream] = {}
        self._registered: dict[tuple[str, str], tuple[Upstream, Any]] = {}
        """(kind, name here) -> upstream, and the description that the item was made of."""

    async def open(self, host: Host) -> None:
        """Connect in the background, and wait for first lists for a while.

        Raises:
            ValueError: an upstream can't work, or two have the same name or prefix.
        """
        self._host = host
        check(self.definition.upstreams)
        host.lives_on = True
        pool = ProcessPool()
        host.stack.push_async_callback(pool.close)
        host.every_second(pool.sweep)
        parked = ParkedCalls(host.services)
        host.report("parked_calls", lambda: len(parked), limit=host.settings.max_questions)
        for config in self.definition.upstreams:
            upstream = self.upstreams[config.name] = Upstream(config, changed=self._register, parked=parked)
            await self._give_credentials(upstream, host)
            host.stack.push_async_callback(upstream.close)
            await upstream.open(pool)
        host.stack.push_async_callback(parked.close)
        host.on_close(self._unregister_all)
        host.check_ready(self._doubt)
        await self._wait()

    async def close(self) -> None:
        """Do nothing: the host's stack closes the upstreams."""

    async def _give_credentials(self, upstream: Upstream, host: Host) -> None:
        config = upstream.config
        if config.auth is None and not config.forward_headers:
            return
        from millstream.gateway.credentials import open_credentials  # noqa: PLC0415  many upstreams need none

        credentials = open_credentials(
            config.name, config.target, config.auth, config.forward_headers, config.headers, host
        )
        if credentials is not None:
            upstream.credentials = credentials
            credentials.changed = upstream.links.end_of
            host.stack.push_async_callback(credentials.close)

    async def _wait(self) -> None:
        """Wait for the first lists, each upstream for as long as its configuration says."""

        async def wait(upstream: Upstream) -> None:
            try:
                async with asyncio.timeout(upstream.config.start_timeout):
                    await upstream.listed.wait()
            except TimeoutError:
                logger.warning("The upstream %s has given no lists yet", upstream.config.name)

        await asyncio.gather(*map(wait, self.upstreams.values()))

    def _doubt(self) -> str:
        down = [name for name, upstream in self.upstreams.items() if upstream.state == "degraded"]
        return f"upstreams that can't be reached: {', '.join(down)}" if down else ""

    # Items

    def _register(self, upstream: Upstream) -> None:
        """Offer what an upstream lists now, and no more what it doesn't."""
        wanted: dict[tuple[str, str], tuple[str, Any]] = {}
        policy = upstream.config.policy
        describe = None if policy is None else policy.describe
        for kind, own_name, each in upstream.catalog.items():
            description = each if describe is None else describe(kind, each)
            if description is None or kind != "tools":
                continue
            key = METHODS[kind][2]
            named = upstream.names.name if key == "name" else upstream.names.uri
            wanted[kind, named(description[key])] = own_name, description
        for kind in METHODS:
            self._exchange(upstream, kind, {name: item for (each, name), item in wanted.items() if each == kind})

    def _exchange(self, upstream: Upstream, kind: str, wanted: dict[str, tuple[str, Any]]) -> None:
        registry = self._host.registry
        mine = {
            name: made for (each, name), (owner, made) in self._registered.items() if owner is upstream and each == kind
        }
        removed = [name for name, made in mine.items() if wanted.get(name) != made]
        added: dict[str, Any] = {}
        for name, (own_name, description) in wanted.items():
            if mine.get(name) == (own_name, description):
                continue
            if name not in mine and registry.has(kind, name):
                logger.error("%s: %r is left out: another item has that name", upstream.config.name, name)
                continue
            try:
                item = UpstreamTool(upstream, name, own_name, description)
            except ValueError as exc:
                logger.warning("%s: %r is left out: %s", upstream.config.name, name, exc)
                continue
            added[name] = item if self.definition.hooks is None else item.within(self.definition.hooks)
        if not removed and not added:
            return
        registry.exchange(kind, removed, added)
        for name in removed:
            del self._registered[kind, name]
        for name in added:
            self._registered[kind, name] = upstream, wanted[name]
        self._announce(_CHANGE_OF[kind])

    def _announce(self, change: str) -> None:
        """Tell the clients of this worker. Every other worker has its own copy of the lists, and does the same."""
        for listener in self._host.changes:
            listener(change)
        self._host.services.changes.emit(Change(change))

    def _unregister_all(self) -> None:
        for kind in METHODS:
            names = [name for each, name in self._registered if each == kind]
            if names:
                self._host.registry.exchange(kind, names, {})
        self._registered.clear()


def check(configs: Sequence[UpstreamConfig]) -> None:
    """Make sure that upstreams can stand side by side.

    Raises:
        ValueError: one can't work, or two have the same name or prefix.
    """
    names: set[str] = set()
    prefixes: dict[str, str] = {}
    for config in configs:
        config.check()
        if config.name in names:
            raise ValueError(f"Two upstreams are named {config.name!r}: rename one")
        names.add(config.name)
        host = config.names.host
        if host in prefixes:
            raise ValueError(
                f"The upstreams {prefixes[host]!r} and {config.name!r} have the same prefix {config.names.prefix!r}: "
                "give one of them another prefix="
            )
        prefixes[host] = config.name
