"""What the page `/gateway` shows: state and figures of each upstream, of all workers together, and what it offers."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import msgspec

from millstream.gateway.catalog import METHODS, Catalog, Description
from millstream.gateway.upstream import Upstream

MAX_ITEMS = 500
"""Tools and quarantined items that are shown."""
_TOKEN = 4
"""Characters of JSON that count as a token, as in ``millstream tokens``."""
_WORST = ("degraded", "connecting", "disabled", "ready")
"""States, the one that needs a look first in front."""
_SUMS = ("links", "refused", "calls", "unanswered")
_MOST = ("p50_ms", "p99_ms", "listed_at", "changed_at")
_OF_PROCESSES = ("running", "spare", "waiting", "limit", "started", "crashed", "ended_idle", "memory")

Registered = Mapping[tuple[str, str], tuple[Upstream, tuple[str, Description]]]
"""(kind, name here) -> upstream, and its item: own name and description."""


class GatewayReports:
    """Describes the upstreams of this worker."""

    __slots__ = ("_registered", "_tokens", "_upstreams")

    def __init__(self, upstreams: Mapping[str, Upstream], registered: Registered) -> None:
        """Keep what the part keeps, and change nothing.

        Args:
            upstreams: by name.
            registered: what they offer here.
        """
        self._upstreams = upstreams
        self._registered = registered
        self._tokens: dict[str, tuple[Catalog, int]] = {}

    def describe(self) -> list[dict[str, Any]]:
        """Return state and figures of each upstream."""
        return [
            {
                **upstream.describe(),
                "tokens": self._tokens_of(upstream),
                "quarantined": len(upstream.quarantined),
                "accounts": upstream.config.connects,
            }
            for upstream in self._upstreams.values()
        ]

    def items(self, name: str) -> dict[str, Any] | None:
        """Return the tools of an upstream, the most expensive first, and what's quarantined; None if there is none."""
        upstream = self._upstreams.get(name)
        if upstream is None:
            return None
        tools: list[dict[str, Any]] = [
            {
                "name": tool,
                "description": str(description.get("title") or description.get("description") or ""),
                "tokens": _tokens(tool, description),
            }
            for tool, description in self._tools(upstream)
        ]
        tools.sort(key=lambda tool: (-tool["tokens"], tool["name"]))
        return {
            "tools": tools[:MAX_ITEMS],
            "quarantined": [msgspec.to_builtins(each) for each in upstream.quarantined[:MAX_ITEMS]],
        }

    def _tools(self, upstream: Upstream) -> Iterator[tuple[str, Description]]:
        for (kind, name), (owner, (_, description)) in self._registered.items():
            if owner is upstream and kind == "tools":
                yield name, description

    def _tokens_of(self, upstream: Upstream) -> int:
        name = upstream.config.name
        found = self._tokens.get(name)
        if found is None or found[0] is not upstream.catalog:
            tokens = sum(_tokens(tool, description) for tool, description in self._tools(upstream))
            found = self._tokens[name] = upstream.catalog, tokens
        return found[1]


def _tokens(name: str, description: Description) -> int:
    """Return about how many tokens a tool takes in the context of a model."""
    shown = {
        "name": name,
        "description": description.get("description", ""),
        "input_schema": description.get("inputSchema", {}),
    }
    return -(-len(msgspec.json.encode(shown).decode()) // _TOKEN)


def merge_reports(workers: Iterable[list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Return one report for each upstream from those of several workers, our own first.

    Counts are sums, times and quantiles are the largest, and the state is the worst.
    """
    found: dict[str, dict[str, Any]] = {}
    for reports in workers:
        for report in reports:
            before = found.get(report["name"])
            found[report["name"]] = {**report, "workers": 1} if before is None else _merged(before, report)
    return list(found.values())


def _merged(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    worse = min(one, other, key=lambda report: _WORST.index(report["state"]))
    merged = {
        **one,
        "state": worse["state"],
        "reason": worse["reason"],
        "workers": one["workers"] + 1,
        "items": {kind: max(one["items"][kind], other["items"][kind]) for kind in METHODS},
        **{name: one[name] + other[name] for name in _SUMS},
        **{name: max(one.get(name) or 0, other.get(name) or 0) or None for name in _MOST},
    }
    mine, theirs = one["processes"], other["processes"]
    if mine is not None and theirs is not None:
        merged["processes"] = {**mine, **{name: mine[name] + theirs[name] for name in _OF_PROCESSES}}
        merged["processes"]["last_error"] = mine["last_error"] or theirs["last_error"]
    return merged
