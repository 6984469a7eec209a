"""Skills of upstreams with a prefix or a policy, and of several upstreams: one list, with the prefix in each URI.

The files are resources, which the gateway offers anyway. A skill is listed if the policy offers its `SKILL.md`.
"""

import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final

import msgspec
from msgspec import Struct

from millstream._protocol.errors import INTERNAL_ERROR, INVALID_PARAMS, ProtocolError, ToolError, shorten
from millstream._protocol.json_schema import is_array, is_object, members
from millstream._protocol.jsonrpc import encode
from millstream._protocol.skills import SKILLS
from millstream._server.calls.access import granted_scopes
from millstream._server.calls.call import Call
from millstream.gateway._bridge import forward
from millstream.gateway._results import WrongShape
from millstream.gateway._upstream import Upstream

Hides = Callable[[Upstream, str], bool]
"""Returns whether a URI, as clients see it, isn't one of this upstream, or isn't offered at the moment."""
_SEPARATOR: Final = " "
_PASSED: Final = ("nextCursor", "ttlMs")
_logger = logging.getLogger("millstream.gateway")
_decode_result = msgspec.json.Decoder(dict[str, Any]).decode


class _Params(Struct):
    uri: str = ""
    cursor: str | None = None


_decode_params = msgspec.json.Decoder(_Params).decode


class MergedSkills:
    """Answers the methods of the skills extension from several upstreams.

    Args:
        hides: see `Hides`.
        private: whether what one caller gets mustn't be cached for others.
    """

    def __init__(self, hides: Hides, private: Callable[[], bool]) -> None:
        self.upstreams: Sequence[Upstream] = ()
        """Those with skills, in the order of the list."""
        self._hides = hides
        self._private = private
        self._methods: dict[str, Callable[[Call], Awaitable[bytes]]] = {
            "skills/list": self._list,
            "skills/get": self._get,
            "resources/directory/read": self._read_directory,
        }

    @property
    def settings(self) -> dict[str, Any]:
        """What the gateway announces."""
        reads = any(_settings_of(each).get("directoryRead") is True for each in self.upstreams)
        return {"directoryRead": True} if reads else {}

    def find(self, method: str) -> Callable[[Call], Awaitable[bytes]] | None:
        """Return what answers a method; None for one that isn't of the extension."""
        return self._methods.get(method) if self.upstreams else None

    # Methods

    async def _list(self, call: Call) -> bytes:
        """Return a page of one upstream. The cursor names that upstream, and has its own cursor."""
        cursor = _read(call).cursor or ""
        name, _, theirs = cursor.partition(_SEPARATOR)
        names = [each.config.name for each in self.upstreams]
        if cursor and name not in names:
            raise ProtocolError(INVALID_PARAMS, "Invalid params: unknown cursor")
        left = list(self.upstreams[names.index(name) if cursor else 0 :])
        upstream, page = await self._first_page(call, left, theirs)
        result = self._hints(upstream, page)
        skills = [self._skill(call, upstream, each) for each in _objects(page.get("skills"))]
        result["skills"] = [each for each in skills if each is not None]
        more = page.get("nextCursor")
        if isinstance(more, str) and more:
            result["nextCursor"] = f"{upstream.config.name}{_SEPARATOR}{more}"
        elif left:
            result["nextCursor"] = f"{left[0].config.name}{_SEPARATOR}"
        return encode(result)[1:-1]

    async def _first_page(self, call: Call, left: list[Upstream], theirs: str) -> tuple[Upstream, dict[str, Any]]:
        """Take the first upstream that answers, and its page. The cursor belongs to the first of all."""
        upstream = left.pop(0)
        try:
            return upstream, await self._ask(call, upstream, {"cursor": theirs} if theirs else {})
        except (ProtocolError, ToolError) as exc:
            if not left:
                raise
            _logger.debug("The skills of the upstream %s are left out: %s", upstream.config.name, exc)
        return await self._first_page(call, left, "")

    async def _get(self, call: Call) -> bytes:
        uri = _read(call).uri
        upstream, own = self._home(uri)
        if upstream is None or not self._sees(call, upstream, uri):
            raise ProtocolError(INVALID_PARAMS, f"No skill is served at {shorten(uri)}")
        page = await self._ask(call, upstream, {"uri": own})
        skill = self._skill(call, upstream, page.get("skill"))
        if skill is None:
            raise ProtocolError(INVALID_PARAMS, f"No skill is served at {shorten(uri)}")
        return encode({**self._hints(upstream, page), "skill": skill})[1:-1]

    async def _read_directory(self, call: Call) -> bytes:
        params = _read(call)
        upstream, own = self._home(params.uri)
        if upstream is None:
            raise ProtocolError(INVALID_PARAMS, f"{shorten(params.uri)} is not a directory resource")
        page = await self._ask(call, upstream, {"uri": own, **({"cursor": params.cursor} if params.cursor else {})})
        result: dict[str, Any] = {name: page[name] for name in _PASSED if name in page}
        result["resources"] = self._entries(call, upstream, page.get("resources"))
        return encode(result)[1:-1]

    async def _ask(self, call: Call, upstream: Upstream, params: dict[str, Any]) -> dict[str, Any]:
        raw = await forward(call, upstream, call.method, encode(params), "")
        try:
            page = _decode_result(raw)
        except WrongShape as exc:
            text = f"The server {upstream.config.name!r} returned no valid result"
            raise ProtocolError(INTERNAL_ERROR, text) from exc
        return page

    # Entries

    def _home(self, uri: str) -> tuple[Upstream | None, str]:
        """Return the upstream of a URI, and the URI there."""
        for upstream in self.upstreams:
            own = upstream.names.original_uri(uri)
            if own is not None and not self._hides(upstream, uri):
                return upstream, own
        return None, ""

    def _skill(self, call: Call, upstream: Upstream, skill: Any) -> dict[str, Any] | None:
        """Return a skill as the caller sees it; None if it doesn't."""
        uri = skill.get("uri") if is_object(skill) else None
        if not isinstance(uri, str) or not self._sees(call, upstream, own := upstream.names.uri(uri)):
            return None
        shown = {**skill, "uri": own}
        if is_array(skill.get("resources")):
            shown["resources"] = self._entries(call, upstream, skill["resources"])
        return shown

    def _entries(self, call: Call, upstream: Upstream, entries: Any) -> list[dict[str, Any]]:
        found = [
            {**each, "uri": upstream.names.uri(each["uri"])}
            for each in _objects(entries)
            if isinstance(each.get("uri"), str)
        ]
        return [each for each in found if self._sees(call, upstream, each["uri"])]

    def _sees(self, call: Call, upstream: Upstream, uri: str) -> bool:
        """Return whether the caller may read a resource, by its URI here."""
        if self._hides(upstream, uri):
            return False
        if upstream.policy is None:
            return True
        rules = upstream.policy.rules_of(uri)
        if rules is None or (rules.visible is not None and not rules.visible(call.principal)):
            return False
        scopes = granted_scopes(call)
        return scopes is None or rules.scopes <= scopes

    def _hints(self, upstream: Upstream, page: dict[str, Any]) -> dict[str, Any]:
        private = self._private() or upstream.policy is not None
        hints: dict[str, Any] = {name: page[name] for name in ("ttlMs", "cacheScope") if name in page}
        return {**hints, "cacheScope": "private"} if private and hints else hints


def _settings_of(upstream: Upstream) -> dict[str, Any]:
    return members(members(upstream.catalog.capabilities.get("extensions")).get(SKILLS))


def _read(call: Call) -> _Params:
    try:
        return _decode_params(call.params or b"{}")
    except (msgspec.DecodeError, RecursionError) as exc:
        raise ProtocolError(INVALID_PARAMS, f"Invalid params: {exc}") from exc


def _objects(value: Any) -> list[dict[str, Any]]:
    return [each for each in value if is_object(each)] if is_array(value) else []
