"""The tools of several servers, renamed for the model's API: up to 64 letters, digits, ``_``, and ``-``."""

import hashlib
import re
from collections.abc import Sequence
from typing import Any

from msgspec import Struct

from millstream._protocol.foreign import repair_schema
from millstream._protocol.notifications import ToolDescription
from millstream.agent._servers import ConnectedServer

_UNFIT = re.compile(r"[^A-Za-z0-9_-]")
_LONGEST = 64


class AgentTool(Struct, frozen=True, eq=False):
    """A tool, its server, and its name for the model."""

    name: str
    server: ConnectedServer
    description: ToolDescription


class Toolbox:
    """The tools of one round."""

    def __init__(self, found: Sequence[tuple[ConnectedServer, Sequence[ToolDescription]]]) -> None:
        several = len(found) > 1
        self._tools: dict[str, AgentTool] = {}
        for server, tools in found:
            for tool in tools:
                name = self._free(fit(f"{server.name}__{tool.name}" if several else tool.name))
                self._tools[name] = AgentTool(name, server, tool)
        self.specs: list[dict[str, Any]] = [_spec(tool) for tool in self._tools.values()]
        """Tools in the format of the API."""

    def _free(self, name: str) -> str:
        number, free = 2, name
        while free in self._tools:
            free, number = f"{name[: _LONGEST - 4]}_{number}", number + 1
        return free

    def get(self, name: str) -> AgentTool | None:
        """Return the tool with this name, or None."""
        return self._tools.get(name)

    def __iter__(self) -> Any:
        return iter(self._tools.values())

    def __len__(self) -> int:
        return len(self._tools)


def fit(name: str) -> str:
    """Return a name that every API accepts. Truncated names end with a digest of the full name."""
    short = _UNFIT.sub("_", name) or "_"
    if len(short) <= _LONGEST:
        return short
    return f"{short[: _LONGEST - 9]}_{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def _spec(tool: AgentTool) -> dict[str, Any]:
    described = tool.description
    # APIs reject all tools for one odd schema, and some reject tools without `properties`.
    parameters: dict[str, Any] = {"type": "object", "properties": {}, **repair_schema(described.input_schema)}
    parameters.pop("$schema", None)
    about = described.description or described.title or described.name
    return {"type": "function", "function": {"name": tool.name, "description": about, "parameters": parameters}}
