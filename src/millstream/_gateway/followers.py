"""Resources of upstreams that clients follow."""

import asyncio
from collections.abc import Callable, Collection, Mapping

from millstream import ProtocolError
from millstream._gateway.log import logger
from millstream._gateway.names import MatchedUri
from millstream._gateway.upstreams.mcp import McpUpstream
from millstream._gateway.upstreams.upstream import Upstream
from millstream._override import override
from millstream._server.calls.services import ChangeSource
from millstream._server.calls.sessions import spellings
from millstream._server.features.registry import Registry
from millstream._server.features.resources import Resource
from millstream.protocol import METHOD_NOT_FOUND

_Sources = set[tuple[McpUpstream, str]]
"""Upstreams, and their own URIs of resources."""


class FollowedResources(ChangeSource):
    """Watches resources of upstreams, as long as clients of this worker follow them.

    Args:
        registry: The server's items.
        upstreams: Name -> upstream.
        hides: Returns whether a URI on this server belongs to another upstream, or is quarantined.
    """

    entry_bytes: int = 300
    """Size of a tuple, a set entry, and the upstream's own URI."""

    def __init__(
        self, registry: Registry, upstreams: Mapping[str, Upstream], hides: Callable[[Upstream, str], bool]
    ) -> None:
        self._registry = registry
        self._upstreams = upstreams
        self._hides = hides
        self._change: object = None
        """The last change of the offered items."""
        self._subscriptions: dict[object, tuple[str, Mapping[str, str], _Sources, _Sources]] = {}
        """Stream or connection -> its caller, the URIs that it subscribes to, and the upstreams' URIs: all of them,
        and the watched ones."""

    def _sources(self) -> list[McpUpstream]:
        return [each for each in self._upstreams.values() if isinstance(each, McpUpstream)]

    @override
    def check_room(self, owner: str, uris: Collection[str]) -> None:
        """See `ChangeSource`."""
        for upstream in self._sources():
            if upstream.refuses_subscriptions and self._find_own(upstream, uris):
                text = f"The server {upstream.name!r} has no subscriptions to resources."
                raise ProtocolError(METHOD_NOT_FOUND, text)
            upstream.watches.check_room(owner, self._own_uris(upstream, uris))

    @override
    def follow(self, follower: object, owner: str, uris: Mapping[str, str]) -> None:
        """See `ChangeSource`: watch the resources that streams and connections of this worker subscribe to."""
        if follower not in self._subscriptions:
            self._watch(follower, owner, uris, self._find_sources(spellings(uris)))
            return
        _, before, wanted, _ = self._subscriptions[follower]
        added = self._find_sources([uris[form] or form for form in uris.keys() - before.keys()])
        gone = [before[form] or form for form in before.keys() - uris.keys()]
        spelled = [*map(self._spell, gone)]  # the rules may have changed since the client subscribed
        left = {(each, uri) for each in self._sources() for uri in map(each.names.original_uri, spelled)}
        self._watch(follower, owner, uris, (wanted.difference(left) if uris else _Sources()) | added)

    async def follow_again(self) -> None:
        """Update the watched resources after the offered ones have changed. Streams can share URIs."""
        found: dict[Collection[str], _Sources] = {}
        self._change = change = object()
        for follower in list(self._subscriptions):
            if self._change is not change or follower not in self._subscriptions:
                continue  # a later change looks at all of them, and streams end
            owner, uris, _, watched = self._subscriptions[follower]
            key = frozenset(uris)
            if key not in found:
                found[key] = self._find_sources(spellings(uris))
            if found[key] != watched:
                self._watch(follower, owner, uris, found[key])
            await asyncio.sleep(0)  # there can be thousands of streams

    def _find_sources(self, uris: Collection[str]) -> _Sources:
        return {(each, uri) for each in self._sources() for uri in self._own_uris(each, uris)}

    def _watch(self, follower: object, owner: str, uris: Mapping[str, str], wanted: _Sources) -> None:
        _, _, _, before = self._subscriptions.pop(follower, (owner, {}, wanted, _Sources()))
        for upstream, uri in before - wanted:
            upstream.watches.leave(owner, uri)
        taken = {(each, uri) for each, uri in wanted - before if each.watches.take(owner, uri)}
        watched = (before & wanted) | taken
        if watched == wanted:
            watched = wanted
        else:  # a session can subscribe on any worker, and before it has a stream
            logger.warning("%s watches %d of its %d resources", owner or "A client", len(watched), len(wanted))
        if uris:
            self._subscriptions[follower] = owner, uris, wanted, watched
        for upstream in {each for each, _ in before ^ watched}:
            upstream.watches.start(handshake=upstream.revision.handshake)

    @override
    async def wait_until_followed(self, uris: Collection[str]) -> None:
        """See `ChangeSource`."""
        for upstream in self._sources():
            if own_uris := self._own_uris(upstream, uris):
                await upstream.watches.wait_until_settled(own_uris, upstream.config.connect_timeout)

    def _own_uris(self, upstream: Upstream, uris: Collection[str]) -> list[str]:
        """Return the upstream's own URIs of the resources that can be watched there."""
        return self._find_own(upstream, uris) if upstream.is_watchable() else []

    def _find_own(self, upstream: Upstream, uris: Collection[str]) -> list[str]:
        offered = [each.offered["resources"] for each in self._upstreams.values()]
        return [
            own_uri
            for uri in map(self._spell, uris)
            if (own_uri := upstream.names.original_uri(uri))
            and (uri not in self._registry.resources or any(uri in each for each in offered))
            and upstream.policy.rules_of(uri) is not None
            and not self._hides(upstream, uri)
        ]

    def _spell(self, uri: str) -> str:
        """Return a URI in its upstream's spelling, after the prefix."""
        item, variables = self._registry.find_readable(uri)
        if isinstance(variables, MatchedUri):
            return variables.uri
        return item.name if isinstance(item, Resource) else uri
