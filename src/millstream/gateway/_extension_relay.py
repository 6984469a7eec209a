"""Forwarding of extensions: the capabilities and methods of upstreams, and their skills as one list.

An extension is forwarded if only one upstream announces it, that upstream has neither a prefix nor a policy, and this
server doesn't have the extension itself. A prefix would have to be added to params and results of unknown shape, and a
policy has no rules for unknown methods. Skills have a known shape, so those of all upstreams are merged.
"""

import logging
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from typing import Any

from msgspec import Raw, Struct

from millstream import ProtocolError, ToolError
from millstream._server.handlers import take_rounds
from millstream.gateway._bridge import forward
from millstream.gateway._questions import UI
from millstream.gateway._results import MalformedResult, split_result
from millstream.gateway._upstream import Upstream
from millstream.parts import Call, Host, RegisteredExtension, granted_scopes
from millstream.protocol import (
    BY_DATE,
    INTERNAL_ERROR,
    INVALID_PARAMS,
    MALFORMED,
    SKILLS,
    TASKS,
    CustomResult,
    InputResponseRequestParams,
    Revision,
    decode_name,
    decoder,
    encode,
    is_array,
    is_object,
    members,
    shorten,
)

Hides = Callable[[Upstream, str], bool]
"""``hides(upstream, uri)`` returns whether a URI on this server belongs to another upstream or isn't offered."""
_SEPARATOR = " "
_FORWARDED_MEMBERS = ("nextCursor", "ttlMs")
_logger = logging.getLogger("millstream.gateway")
_decode_result = decoder(dict[str, Any])


class _Params(Struct):
    uri: str = ""
    cursor: str | None = None


_decode_skill_params = decoder(_Params)


class MergedSkills:
    """Answers the methods of the skills extension from several upstreams.

    It merges the skills of several upstreams, or of one with a prefix or a policy, into one list with prefixed URIs.
    The files are resources, which the gateway offers anyway. A skill is listed if the policy offers its `SKILL.md`.

    Args:
        hides: See `Hides`.
        private: Returns whether results depend on the caller, and so mustn't be cached for others.
    """

    def __init__(self, hides: Hides, private: Callable[[], bool]) -> None:
        self.upstreams: Sequence[Upstream] = ()
        """Upstreams with skills, in the order of the list."""
        self._hides = hides
        self._private = private
        self._methods: dict[str, Callable[[Call], Awaitable[bytes]]] = {
            "skills/list": self._list,
            "skills/get": self._get,
            "resources/directory/read": self._read_directory,
        }

    @property
    def settings(self) -> dict[str, Any]:
        """Settings of the extension that the gateway announces."""
        reads = any(_settings_of(each).get("directoryRead") is True for each in self.upstreams)
        return {"directoryRead": True} if reads else {}

    def find(self, method: str) -> Callable[[Call], Awaitable[bytes]] | None:
        """Return the handler of a method; None if it isn't a method of the extension."""
        return self._methods.get(method) if self.upstreams else None

    # Methods

    async def _list(self, call: Call) -> bytes:
        """Return a page of one upstream's skills. The cursor consists of the upstream's name and its own cursor."""
        cursor = _read(call).cursor or ""
        name, _, upstream_cursor = cursor.partition(_SEPARATOR)
        names = [each.config.name for each in self.upstreams]
        if cursor and name not in names:
            raise ProtocolError(INVALID_PARAMS, "Invalid params: unknown cursor")
        remaining = list(self.upstreams[names.index(name) if cursor else 0 :])
        upstream, page = await self._first_page(call, remaining, upstream_cursor)
        result = self._hints(upstream, page)
        skills = [self._skill(call, upstream, each) for each in _objects(page.get("skills"))]
        result["skills"] = [each for each in skills if each is not None]
        next_cursor = page.get("nextCursor")
        if isinstance(next_cursor, str) and next_cursor:
            result["nextCursor"] = f"{upstream.config.name}{_SEPARATOR}{next_cursor}"
        elif remaining:
            result["nextCursor"] = f"{remaining[0].config.name}{_SEPARATOR}"
        return encode(result)[1:-1]

    async def _first_page(
        self, call: Call, remaining: list[Upstream], upstream_cursor: str
    ) -> tuple[Upstream, dict[str, Any]]:
        """Return the first upstream that answers, and its page. The cursor is for the first of `remaining`."""
        upstream = remaining.pop(0)
        try:
            return upstream, await self._ask(call, upstream, {"cursor": upstream_cursor} if upstream_cursor else {})
        except (ProtocolError, ToolError) as exc:
            if not remaining:
                raise
            _logger.debug("Skipped the skills of the upstream %s: %s", upstream.config.name, exc)
        return await self._first_page(call, remaining, "")

    async def _get(self, call: Call) -> bytes:
        uri = _read(call).uri
        upstream, original_uri = self._resolve(uri)
        if upstream is not None and self._can_read(call, upstream, uri):
            page = await self._ask(call, upstream, {"uri": original_uri})
            if (skill := self._skill(call, upstream, page.get("skill"))) is not None:
                return encode({**self._hints(upstream, page), "skill": skill})[1:-1]
        raise ProtocolError(INVALID_PARAMS, f"No skill is served at {shorten(uri)}.")

    async def _read_directory(self, call: Call) -> bytes:
        params = _read(call)
        upstream, original_uri = self._resolve(params.uri)
        if upstream is None:
            raise ProtocolError(INVALID_PARAMS, f"{shorten(params.uri)} is not a directory resource.")
        page = await self._ask(
            call, upstream, {"uri": original_uri, **({"cursor": params.cursor} if params.cursor else {})}
        )
        result: dict[str, Any] = {name: page[name] for name in _FORWARDED_MEMBERS if name in page}
        result["resources"] = self._entries(call, upstream, page.get("resources"))
        return encode(result)[1:-1]

    async def _ask(self, call: Call, upstream: Upstream, params: dict[str, Any]) -> dict[str, Any]:
        work, redactor = forward(call, upstream, call.method, encode(params), ""), upstream.redactor(call.method)
        raw = await (work if redactor is None else redactor.redact(work, call))
        try:
            page = _decode_result(raw)
        except MalformedResult as exc:
            text = f"The server {upstream.config.name!r} returned an invalid result"
            raise ProtocolError(INTERNAL_ERROR, text) from exc
        return page

    # Entries

    def _resolve(self, uri: str) -> tuple[Upstream | None, str]:
        """Return the upstream of a URI, and the upstream's own URI."""
        for upstream in self.upstreams:
            original_uri = upstream.names.original_uri(uri)
            if original_uri is not None and not self._hides(upstream, uri):
                return upstream, original_uri
        return None, ""

    def _skill(self, call: Call, upstream: Upstream, skill: Any) -> dict[str, Any] | None:
        """Return a skill as the caller sees it; None if it's hidden from the caller."""
        uri = skill.get("uri") if is_object(skill) else None
        if not isinstance(uri, str) or not self._can_read(call, upstream, prefixed_uri := upstream.names.uri(uri)):
            return None
        visible = {**skill, "uri": prefixed_uri}
        if is_array(skill.get("resources")):
            visible["resources"] = self._entries(call, upstream, skill["resources"])
        return visible

    def _entries(self, call: Call, upstream: Upstream, entries: Any) -> list[dict[str, Any]]:
        found = [
            {**each, "uri": upstream.names.uri(each["uri"])}
            for each in _objects(entries)
            if isinstance(each.get("uri"), str)
        ]
        return [each for each in found if self._can_read(call, upstream, each["uri"])]

    def _can_read(self, call: Call, upstream: Upstream, uri: str) -> bool:
        """Return whether the caller may read a resource, by its URI on this server."""
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
    return members(upstream.catalog.extensions.get(SKILLS))


def _read(call: Call) -> _Params:
    try:
        return _decode_skill_params(call.params or b"{}")
    except MALFORMED as exc:
        raise ProtocolError(INVALID_PARAMS, f"Invalid params: {exc}") from exc


def _objects(value: Any) -> list[dict[str, Any]]:
    return [each for each in value if is_object(each)] if is_array(value) else []


NOT_FORWARDED = frozenset({TASKS})
"""Extensions that change the results of MCP's own methods."""
_RESERVED_PARAMS = ("_meta", "inputResponses", "requestState")
_CORE = frozenset(method for revision in BY_DATE.values() for method in revision.requests)
_decode_params = decoder(dict[str, Raw])
_decode_rounds = decoder(InputResponseRequestParams)


class ExtensionForwarding:
    """The extensions of a gateway's upstreams."""

    def __init__(self, host: Host, hides: Hides) -> None:
        self._host = host
        self._skills = MergedSkills(hides, lambda: host.registry.private)
        self._settings: dict[str, Any] = {}
        """Identifier -> settings, as the registry announces them."""
        self._upstreams: dict[str, Upstream] = {}
        """Identifier -> the upstream that has it."""
        host.extend(RegisteredExtension("extensions", self._settings, {}, frozenset(BY_DATE)))
        host.registry.find_method = self.find
        host.on_close(self._stop)

    def _stop(self) -> None:
        self._host.registry.find_method = None

    def update(self, upstreams: Collection[Upstream]) -> None:
        """Announce the extensions of the upstreams, and route their methods."""
        claims: dict[str, list[Upstream]] = {}
        for upstream in upstreams:
            for name in upstream.catalog.extensions:
                claims.setdefault(name, []).append(upstream)
        own = self._own()
        found = {
            name: claimants[0]
            for name, claimants in claims.items()
            if len(claimants) == 1
            and name not in own
            and name not in NOT_FORWARDED
            and not claimants[0].names.prefix
            and claimants[0].policy is None
        }
        announced = {name: upstream.catalog.extensions[name] for name, upstream in found.items()}
        if TASKS in claims and TASKS not in own:
            announced[TASKS] = {}  # the gateway wraps their tasks in its own
        merged = SKILLS in claims and SKILLS not in own and SKILLS not in found
        self._skills.upstreams = tuple(claims[SKILLS]) if merged else ()
        if merged:
            announced[SKILLS] = self._skills.settings
        if UI in claims and UI not in own:
            announced.setdefault(UI, {})  # it has no methods: views are resources that tools refer to
        if announced != self._settings:
            self._settings.clear()
            self._settings.update(announced)
            self._host.dispatcher.announcement.forget()
        self._upstreams = found
        self._host.services.forwarded_extensions = frozenset(found)

    def _own(self) -> set[str]:
        return {
            name
            for each in self._host.registry.extensions
            if each.capability == "extensions" and each.settings is not self._settings
            for name in each.settings
        }

    def find(self, method: str, revision: Revision) -> Callable[[Call], Awaitable[bytes]] | None:
        """Return a handler that forwards a method to its upstream; None if no upstream has the method.

        With several upstreams, the prefix of the method decides: the methods of the extension ``com.example/stock``
        begin with ``com.example/`` or ``stock/``.
        """
        if method in _CORE:
            return None
        if (merged := self._skills.find(method)) is not None:
            return merged
        upstreams = set(self._upstreams.values())
        if not upstreams:
            return None
        if len(upstreams) > 1:
            upstreams = {
                upstream
                for name, upstream in self._upstreams.items()
                if method.startswith((name, f"{name.partition('/')[0]}/", f"{name.rpartition('/')[2]}/"))
            }
        if len(upstreams) != 1:
            return None
        (upstream,) = upstreams
        return lambda call: _forward(call, upstream)


async def _forward(call: Call, upstream: Upstream) -> bytes:
    if not call.revision.handshake and call.params:
        take_rounds(call, _decode_rounds(call.params))
    try:
        params: Mapping[str, Raw] = {
            name: value for name, value in _decode_params(call.params or b"{}").items() if name not in _RESERVED_PARAMS
        }
    except MALFORMED:
        params = {}
    header = (call.headers or {}).get(b"mcp-name", b"")
    name = decode_name(header.strip(b" \t")) if header else ""
    result = await forward(call, upstream, call.method, encode(params), name)
    try:
        members_of_result = _decode_result(result)
        if members_of_result.get("resultType", "complete") != "complete":
            raise CustomResult(members_of_result)
        found, call.meta = split_result(result, "")
    except MalformedResult as exc:
        raise ProtocolError(INTERNAL_ERROR, f"The server {upstream.config.name!r} returned an invalid result.") from exc
    return found
