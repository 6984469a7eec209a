"""The gateway as a part of the server, which changes its upstreams while it runs.

An upstream that `Upstream.can_become` its new configuration keeps its connections. Others are replaced.
"""

import asyncio
from collections.abc import Collection, Iterable, Mapping, Sequence
from time import monotonic

from millstream._gateway.catalog.catalog import METHODS
from millstream._gateway.catalog.offer import OfferedItem
from millstream._gateway.errors import EndedHere
from millstream._gateway.options.upstream import UpstreamConfig
from millstream._gateway.part import GatewayPart, check
from millstream._gateway.upstreams.mcp import McpUpstream
from millstream._gateway.upstreams.upstream import Upstream
from millstream._override import override
from millstream._parts import PartHost
from millstream._server.calls.call import Call

_LOOK_SECONDS = 0.1


class LiveGatewayPart(GatewayPart):
    """A gateway that can use another configuration."""

    @override
    async def open(self, host: PartHost) -> None:
        """See `GatewayPart`."""
        await super().open(host)
        if self.definition.live is not None:
            self.definition.live.open(self, host)

    async def reconfigure(self, configs: Sequence[UpstreamConfig]) -> None:
        """Use another configuration. Upstreams that haven't changed keep their connections, sessions, and lists.

        Raises:
            ValueError: See `prepare`.
            LocalError: As above.
        """
        has_sets = bool(self.definition.sets)
        self.use(await self.prepare(configs, has_sets=has_sets), configs, self.definition.instructions)

    async def prepare(self, configs: Sequence[UpstreamConfig], *, has_sets: bool) -> dict[str, Upstream]:
        """Return the upstreams of another configuration for `use`: unchanged ones, and new ones, which have opened.

        Args:
            configs: The upstreams.
            has_sets: Whether the configuration has sets.

        Raises:
            ValueError: It's invalid, or a running gateway can't change to it.
            LocalError: Options of credentials are invalid.
        """
        check(configs)
        new, before = dict[str, Upstream](), list(self._opened)
        try:
            for config in configs:
                kept = self.upstreams.get(config.name)
                new[config.name] = kept if kept is not None and kept.can_become(config) else self._add_upstream(config)
            self._check_mode([*new.values()], configs, has_sets=has_sets)
            self._warn_about_rules(self._host, [each for each in configs if each not in self.definition.upstreams])
            opened = [each for name, each in new.items() if self.upstreams.get(name) is not each]
            await asyncio.gather(*(each.lists.load() for each in opened))
            for each in opened:
                await self._open_upstream(each)
            await self._wait_for_lists(opened)
        except BaseException:
            await self.discard([each for each in self._opened if each not in before])
            raise
        return new

    async def discard(self, upstreams: Iterable[Upstream]) -> None:
        """Close upstreams of `prepare` that won't be used."""
        for each in upstreams:
            if each in self._opened and self.upstreams.get(each.name) is not each:
                await each.close()
                self._opened.remove(each)

    def _check_mode(self, upstreams: Sequence[Upstream], configs: Sequence[UpstreamConfig], *, has_sets: bool) -> None:
        """Check that a configuration doesn't change what's decided at the start.

        Raises:
            ValueError: It does.
        """
        relayed = next((each for each in self.upstreams.values() if each.is_relayed), None)
        if relayed is not None and (has_sets or [*configs] != [relayed.config]):
            raise ValueError(
                f"this gateway relays its only upstream, {relayed.name!r}, which can't change while it runs. "
                "Restart the gateway."
            )
        if relayed is None and not self._find_obstacle(upstreams, has_sets=has_sets):
            raise ValueError(
                f"with {upstreams[0].name!r} as its only upstream, this gateway would relay it, which can't change "
                "while it runs. Restart it, or give the upstream a prefix."
            )
        for each in configs:
            for page in each.pages - self.definition.pages:
                what = "approve.by" if page == "/approvals" else each.needs_sign_in
                raise ValueError(
                    f"upstream {each.name!r}: the first {what} needs the page {page}, which opens when the gateway "
                    "starts. Restart the gateway."
                )

    def use(self, upstreams: Mapping[str, Upstream], configs: Sequence[UpstreamConfig], instructions: str) -> None:
        """Use the result of `prepare`. Callers see either configuration, because nothing waits here. Upstreams that
        are no longer used close when their calls have ended.
        """
        host, old = self._host, dict(self.upstreams)
        self._gateway.arriving.fit(max(each.max_bytes for each in configs))
        before = self._list_offered()
        leaving = [each for name, each in old.items() if upstreams.get(name) is not each]
        for each in leaving:
            self._remove_items(each)
        offered = {*self._results_offered}
        for each in leaving:
            self._results_offered.pop(each.name, lambda: None)()
        self.upstreams.clear()
        self.upstreams.update(upstreams)
        self.definition.upstreams[:], self.definition.instructions = configs, instructions
        for group, config in enumerate(configs, 1):
            each = upstreams[config.name]
            if each.config != config:
                each.become(config)
            former = old.get(each.name)
            if former is not each and isinstance(former, McpUpstream) and isinstance(each, McpUpstream):
                for session in former.links.own:  # each client learns that its session has ended
                    each.links.lost.keep(session, EndedHere)
            for kind, items in each.offered.items():
                host.registry.move(kind, items, group)
            self._offer_results(each)
        self._mounts = {name: self._mount(each) for name, each in upstreams.items()}
        changed, after = self._apply(), self._list_offered()
        changed |= {METHODS[kind][0].partition("/")[0] for kind in METHODS if before[kind] != after[kind]}
        self._announce_changes(changed | ({"resources"} if offered != self._results_offered.keys() else set()))
        host.run(self._followed.follow_again())
        calls = [call for call in host.dispatcher.calls if not call.long_lived]
        for each in leaving:
            host.run(self._end(each, calls))

    def _list_offered(self) -> dict[str, dict[str, OfferedItem]]:
        """Return what all upstreams offer now, by kind and name."""
        return {
            kind: {name: item for each in self.upstreams.values() for name, item in each.offered[kind].items()}
            for kind in METHODS
        }

    async def _end(self, upstream: Upstream, calls: Collection[Call]) -> None:
        """Close an upstream when the calls that may use it have ended, after at most `drain_timeout`."""
        until = monotonic() + self._host.settings.drain_timeout
        await upstream.lists.tasks.close()
        running = self._host.dispatcher.calls
        while (_has_calls(upstream) or not running.isdisjoint(calls)) and monotonic() < until:  # noqa: ASYNC110  as in `drain`
            await asyncio.sleep(_LOOK_SECONDS)
        await self.discard([upstream])


def _has_calls(upstream: Upstream) -> bool:
    links = upstream.links if isinstance(upstream, McpUpstream) else None
    return links is not None and any(link.calls for link in (*links.links.values(), *links.retired))
