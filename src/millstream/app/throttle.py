"""Who may ask how often: the limits of the settings and of single tools, as the gate in front of every call.

A caller is a principal, or an address where there is none; the program that started this one over standard input has
no limit but those of the tools. If any limit refuses, none is charged. Where nothing is limited, there is no gate.
"""

import re
from math import ceil

from millstream.config import Settings
from millstream.limits import Limiter, Rate, neighbourhood, told
from millstream.protocol.admission import target_name
from millstream.protocol.errors import RATE_LIMITED, ProtocolError
from millstream.server.calls.call import Call
from millstream.server.features.registry import Registry
from millstream.server.features.tools import Tool

_ODD = re.compile(r"[^A-Za-z0-9_.-]")
"""What a name in a header had better not have."""


class Throttle:
    """The limits of one running server."""

    __slots__ = ("_address", "_calls", "_registry", "_requests", "_tools")

    def __init__(self, settings: Settings, registry: Registry) -> None:
        self._registry = registry
        self._requests = _limiter("requests", settings.limit_requests)
        self._calls = _limiter("calls", settings.limit_calls)
        self._address = _limiter("address", settings.limit_address)
        self._tools: dict[tuple[str, str], Limiter] = {}
        """(tool, rate) -> its limiter."""

    def check(self, call: Call) -> None:
        """Charge a call to its caller.

        Raises:
            ProtocolError: RATE_LIMITED, HTTP 429, with the time to wait.
        """
        charged: list[tuple[Limiter, str, float]] = []
        peer = "" if call.origin is None else neighbourhood(call.origin.peer)
        owner = peer if call.principal is None else call.principal.id
        cost = 1.0
        if call.method == "tools/call":
            tool = self._tool(call)
            if tool is not None:
                cost = tool.cost
                if tool.limit:
                    charged.append((self._of(tool), owner, 1.0))
            if self._calls is not None and owner:
                charged.append((self._calls, owner, cost))
        if self._requests is not None and owner:
            charged.append((self._requests, owner, cost))
        if self._address is not None and peer:
            charged.append((self._address, peer, cost))
        for limiter, key, price in charged:
            wait = limiter.wait(key, price)
            if wait > 0:
                raise refusal(limiter, key, wait)
        for limiter, key, price in charged:
            limiter.take(key, price)

    def _tool(self, call: Call) -> Tool | None:
        if call.tool is not None:
            tool: Tool = call.tool
            return tool
        found = self._registry.tools.get(call.name or target_name(call.method, call.params))
        return None if found is not None and found.visible is not None and not found.visible(call.principal) else found

    def _of(self, tool: Tool) -> Limiter:
        key = (tool.name, tool.limit)
        found = self._tools.get(key)
        if found is None:
            found = self._tools[key] = Limiter(f"tool:{_ODD.sub('_', tool.name)}", Rate.of(tool.limit))
        return found


def _limiter(name: str, rate: str) -> Limiter | None:
    return Limiter(name, Rate.of(rate)) if rate else None


def refusal(limiter: Limiter, key: str, wait: float) -> ProtocolError:
    """What a caller hears that asks too often."""
    rate = limiter.rate
    data = {
        "code": "rate_limited",
        "retryAfterMs": ceil(wait * 1000),
        "policy": limiter.name,
        "limit": f"{rate.count} per {rate.seconds} s",
    }
    text = f"Too many requests: try again in {max(1, ceil(wait))} seconds"
    return ProtocolError(RATE_LIMITED, text, data, status=429, head=told(limiter, key, wait))
