"""Forwarding of extensions: announces the capabilities of upstreams, and forwards their methods.

An extension is forwarded if only one upstream announces it, that upstream has neither a prefix nor a policy, and this
server doesn't have the extension itself. A prefix would have to be added to params and results of unknown shape, and a
policy has no rules for unknown methods. Skills have a known shape, so those of all upstreams are merged.
"""

from collections.abc import Awaitable, Callable, Collection, Mapping
from typing import Any

from msgspec import Raw

from millstream._parts import Host
from millstream._protocol.errors import INTERNAL_ERROR, CustomResult, ProtocolError
from millstream._protocol.json_schema import members
from millstream._protocol.jsonrpc import MALFORMED, decoder, encode
from millstream._protocol.metadata import TASKS
from millstream._protocol.notifications import InputResponseRequestParams
from millstream._protocol.param_headers import decode_name
from millstream._protocol.revisions import ALL, Revision
from millstream._protocol.skills import SKILLS
from millstream._server.calls.call import Call
from millstream._server.features.registry import RegisteredExtension
from millstream._server.handlers.tools import take_rounds
from millstream.gateway._bridge import forward
from millstream.gateway._merged_skills import Hides, MergedSkills
from millstream.gateway._questions import UI
from millstream.gateway._results import MalformedResult, split_result
from millstream.gateway._upstream import Upstream

NOT_FORWARDED = frozenset({TASKS})
"""Extensions that change the results of MCP's own methods."""
_RESERVED_PARAMS = ("_meta", "inputResponses", "requestState")
_CORE = frozenset(method for revision in ALL for method in revision.requests)
_decode_params = decoder(dict[str, Raw])
_decode_rounds = decoder(InputResponseRequestParams)
_decode_object = decoder(dict[str, Any])


class ExtensionForwarding:
    """The extensions of a gateway's upstreams."""

    def __init__(self, host: Host, hides: Hides) -> None:
        self._host = host
        self._skills = MergedSkills(hides, lambda: host.registry.private)
        self._settings: dict[str, Any] = {}
        """Identifier -> settings, as the registry announces them."""
        self._upstreams: dict[str, Upstream] = {}
        """Identifier -> the upstream that has it."""
        host.extend(RegisteredExtension("extensions", self._settings, {}, frozenset(each.date for each in ALL)))
        host.registry.find_method = self.find
        host.on_close(self._stop)

    def _stop(self) -> None:
        self._host.registry.find_method = None

    def update(self, upstreams: Collection[Upstream]) -> None:
        """Announce the extensions of the upstreams, and route their methods."""
        claims: dict[str, list[Upstream]] = {}
        for upstream in upstreams:
            for name in members(upstream.catalog.capabilities.get("extensions")):
                claims.setdefault(name, []).append(upstream)
        own = self._own()
        found = {
            name: claimants[0]
            for name, claimants in claims.items()
            if len(claimants) == 1 and name not in own and name not in NOT_FORWARDED and _is_transparent(claimants[0])
        }
        announced = {
            name: members(upstream.catalog.capabilities.get("extensions"))[name] for name, upstream in found.items()
        }
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

        async def forward_method(call: Call) -> bytes:
            return await _forward(call, upstream)

        return forward_method


def _is_transparent(upstream: Upstream) -> bool:
    return not upstream.names.prefix and upstream.policy is None


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
        members_of_result = _decode_object(result)
        if members_of_result.get("resultType", "complete") != "complete":
            raise CustomResult(members_of_result)
        found, call.meta = split_result(result, "")
    except MalformedResult as exc:
        raise ProtocolError(INTERNAL_ERROR, f"The server {upstream.config.name!r} returned an invalid result") from exc
    return found
