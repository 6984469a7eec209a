"""The table of parts: their modules, and the conditions for a server to have them. Parts are imported on demand."""

from collections.abc import Callable, Collection, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Protocol

from msgspec import Struct

from millstream._config import Settings

if TYPE_CHECKING:
    from millstream._parts import Part
    from millstream._server.features.registry import Registry
    from millstream.gateway._upstream import UpstreamConfig


class PartCriteria(Protocol):
    """The part of a server's `Definition` that selects parts."""

    store: str
    registry: "Registry"
    settings: Settings
    parts: frozenset[str]
    extra_parts: "Sequence[Part]"
    upstreams: "list[UpstreamConfig]"

    @property
    def protected(self) -> bool: ...

    def mounts(self) -> bool: ...


class PartEntry(Struct, frozen=True):
    """A built-in part."""

    place: str
    """Module and class; the class is called with the definition of the server."""
    when: Callable[[PartCriteria], bool] | None = lambda it: True
    """Whether a server with this definition has it; None for parts that ``serve=`` names."""
    brings: Collection[str] = ()
    """Further parts that ``serve=`` adds with it."""
    extension: bool = False
    """Whether the class is an `Extension`, which is called without arguments."""


TABLE: dict[str, PartEntry] = {
    "metrics": PartEntry("millstream._app.parts.operations:MetricsPart", None),
    "auth": PartEntry("millstream._app.parts.auth:AuthPart", lambda it: it.protected or it.mounts()),
    # Its gate must precede that of the limits.
    "search": PartEntry("millstream.gateway._search:SearchPart", lambda it: it.settings.tool_search),
    "limits": PartEntry("millstream._app.parts.mcp:LimitsPart"),
    "hub": PartEntry("millstream._app.parts.hub:HubPart", None),
    "lifespan": PartEntry("millstream._app.parts.lifespan:LifespanPart"),
    "tasks": PartEntry(
        "millstream.extensions.tasks:TasksExtension",
        lambda it: bool(it.upstreams) or any(tool.task is not None for tool in it.registry.tools.values()),
        extension=True,
    ),  # before the tools of upstreams are there
    "gateway": PartEntry("millstream.gateway._part:GatewayPart", lambda it: bool(it.upstreams)),
    "observation": PartEntry("millstream._app.parts.mcp:ObservationPart"),
    "mcp": PartEntry("millstream._app.parts.mcp:McpPart"),
    "probes": PartEntry("millstream._app.parts.operations:ProbesPart"),
    "rest": PartEntry("millstream._app.parts.mcp:RestPart", None),
    "web": PartEntry("millstream._app.parts.web:WebPart", None, ("hub", "rest", "metrics")),
    "cards": PartEntry("millstream.extensions.cards:Cards", lambda it: bool(it.settings.card_url), extension=True),
    "paths": PartEntry("millstream._app.parts.lifespan:PathsPart"),
    "siblings": PartEntry(
        "millstream._app.parts.siblings:SiblingsPart",
        lambda it: it.store.startswith(("memory:", "sqlite:")),
    ),
    "audit": PartEntry("millstream._app.parts.operations:AuditPart", lambda it: bool(it.settings.audit_log)),
}
"""Name -> part. Parts open in this order, after those they need."""
SERVABLE = tuple(name for name, entry in TABLE.items() if entry.when is None)
"""Valid values of ``serve=``."""


def choose_parts(serve: str | Collection[str]) -> frozenset[str]:
    """Return the parts that a ``serve`` value names, with those that they add.

    Raises:
        ValueError: A part is unknown.
    """
    names = serve.replace(",", " ").split() if isinstance(serve, str) else list(serve)
    if "all" in names:
        return frozenset(SERVABLE)
    unknown = [name for name in names if name not in SERVABLE]
    if unknown:
        raise ValueError(f"Unknown part {unknown[0]!r} in serve. Use {', '.join(SERVABLE)}, or all.")
    return frozenset(names).union(*(TABLE[name].brings for name in names))


def make_parts(definition: PartCriteria) -> "list[Part]":
    """Return the parts of a server by its `Definition`, with the program's own last."""
    made: list[Part] = []
    for name, entry in TABLE.items():
        if name in definition.parts if entry.when is None else entry.when(definition):
            module, _, kind = entry.place.partition(":")
            part = getattr(import_module(module), kind)
            if entry.extension:
                from millstream.extensions._part import ExtensionPart  # noqa: PLC0415  few servers have some

                made.append(ExtensionPart(part()))
            else:
                made.append(part(definition))
    return [*made, *definition.extra_parts]
