"""The tools of several servers under names that a model may call: letters, digits, ``_`` and ``-``, at most 64."""

import hashlib
import re
from collections.abc import Sequence
from typing import Any

from msgspec import Struct

from millstream._protocol.messages import ToolDescription
from millstream.agent._servers import Connected

_UNFIT = re.compile(r"[^A-Za-z0-9_-]")
_LONGEST = 64


class Tool(Struct, frozen=True, eq=False):
    """A tool, its server, and what the model calls it."""

    name: str
    server: Connected
    described: ToolDescription


class Toolbox:
    """The tools of one round."""

    __slots__ = ("_tools", "specs")

    def __init__(self, found: Sequence[tuple[Connected, Sequence[ToolDescription]]]) -> None:
        several = len(found) > 1
        self._tools: dict[str, Tool] = {}
        for server, tools in found:
            for tool in tools:
                name = self._free(fit(f"{server.name}__{tool.name}" if several else tool.name))
                self._tools[name] = Tool(name, server, tool)
        self.specs: list[dict[str, Any]] = [_spec(tool) for tool in self._tools.values()]
        """As the API takes them."""

    def _free(self, name: str) -> str:
        number, free = 2, name
        while free in self._tools:
            free, number = f"{name[: _LONGEST - 4]}_{number}", number + 1
        return free

    def get(self, name: str) -> Tool | None:
        """The tool that the model means."""
        return self._tools.get(name)

    def __iter__(self) -> Any:
        return iter(self._tools.values())

    def __len__(self) -> int:
        return len(self._tools)


def fit(name: str) -> str:
    """A name that every API takes; one that is cut ends with a digest of all of it."""
    short = _UNFIT.sub("_", name) or "_"
    if len(short) <= _LONGEST:
        return short
    return f"{short[: _LONGEST - 9]}_{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def _spec(tool: Tool) -> dict[str, Any]:
    described = tool.described
    # Without `properties` some APIs refuse the tool.
    parameters: dict[str, Any] = {"type": "object", "properties": {}, **described.input_schema}
    parameters.pop("$schema", None)
    about = described.description or described.title or described.name
    return {"type": "function", "function": {"name": tool.name, "description": about, "parameters": parameters}}
