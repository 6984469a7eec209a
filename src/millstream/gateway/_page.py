"""Data for the page `/gateway`: state and statistics of each upstream across workers, and its items."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import msgspec

from millstream.gateway._catalog import METHODS, Catalog, Description
from millstream.gateway._policy import CHARACTERS_PER_TOKEN
from millstream.gateway._upstream import Upstream

MAX_ITEMS = 500
"""Maximum tools and quarantined items to show."""
_STATES_BY_URGENCY = ("degraded", "connecting", "ready")
"""States, the most urgent first."""
_SUM_FIELDS = ("links", "refused", "calls", "unanswered")
_MAX_FIELDS = ("p50_ms", "p99_ms", "listed_at", "changed_at")
_PROCESS_SUM_FIELDS = ("running", "spare", "waiting", "limit", "started", "crashed", "ended_idle", "memory")

RegisteredItems = Mapping[tuple[str, str], tuple[Upstream, tuple[str, Description]]]
"""(kind, name on this server) -> upstream, and its item: the upstream's name and description."""


class GatewayReports:
    """Describes the upstreams of this worker."""

    def __init__(self, upstreams: Mapping[str, Upstream], registered: RegisteredItems) -> None:
        """Create the reports from the live tables of the part.

        Args:
            upstreams: Upstreams by name.
            registered: Items of the upstreams on this server.
        """
        self._upstreams = upstreams
        self._items = registered
        self._tokens: dict[str, tuple[Catalog, int]] = {}

    def describe(self) -> list[dict[str, Any]]:
        """Return state and statistics of each upstream. `items` counts what's offered here, `listed` what it lists."""
        offered = Counter((owner.config.name, kind) for (kind, _), (owner, _) in self._items.items())
        return [
            {
                **(report := upstream.describe()),
                "listed": report["items"],
                "items": {kind: offered[upstream.config.name, kind] for kind in METHODS},
                "tokens": self._tokens_of(upstream),
                "quarantined": len(upstream.quarantined),
                "accounts": upstream.config.connects,
            }
            for upstream in self._upstreams.values()
        ]

    def items(self, name: str) -> dict[str, Any] | None:
        """Return the tools of an upstream, largest first, and its quarantined items; None if it's unknown."""
        upstream = self._upstreams.get(name)
        if upstream is None:
            return None
        tools: list[dict[str, Any]] = [
            {
                "name": tool,
                "description": str(description.get("description") or description.get("title") or ""),
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
        for (kind, name), (owner, (_, description)) in self._items.items():
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
    """Return approximately how many tokens a tool takes in a model's context."""
    shown = {
        "name": name,
        "description": description.get("description", ""),
        "input_schema": description.get("inputSchema", {}),
    }
    return -(-len(msgspec.json.encode(shown).decode()) // CHARACTERS_PER_TOKEN)


def merge_reports(workers: Iterable[list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Merge the reports of several workers into one per upstream, starting with this worker's.

    Counts are added, times and quantiles are the largest, and the state is the worst.
    """
    found: dict[str, dict[str, Any]] = {}
    for reports in workers:
        for report in reports:
            merged_report = found.get(report["name"])
            found[report["name"]] = {**report, "workers": 1} if merged_report is None else _merge(merged_report, report)
    return list(found.values())


def _merge(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    worse = min(one, other, key=lambda report: _STATES_BY_URGENCY.index(report["state"]))
    merged = {
        **one,
        "state": worse["state"],
        "reason": worse["reason"],
        "workers": one["workers"] + 1,
        **{each: {kind: max(one[each][kind], other[each][kind]) for kind in METHODS} for each in ("items", "listed")},
        **{name: one[name] + other[name] for name in _SUM_FIELDS},
        **{name: max(one.get(name) or 0, other.get(name) or 0) or None for name in _MAX_FIELDS},
    }
    first, second = one["processes"], other["processes"]
    if first is not None and second is not None:
        merged["processes"] = {**first, **{name: first[name] + second[name] for name in _PROCESS_SUM_FIELDS}}
        merged["processes"]["last_error"] = first["last_error"] or second["last_error"]
    return merged
