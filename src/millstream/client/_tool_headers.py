"""Arguments that are also sent as headers: the annotations of tools, and the headers of a call.

https://modelcontextprotocol.io/specification/2026-07-28/server/tools. Tools with invalid annotations are left out of
lists, as required by the specification.
"""

import logging
from collections.abc import Iterable, Mapping
from typing import Any

from millstream._protocol.json_schema import value_at
from millstream._protocol.notifications import ToolDescription
from millstream._protocol.param_headers import ParamHeader, encode_value, find_annotations

_logger = logging.getLogger(__name__)
_NO_HEADERS: Mapping[str, str] = {}


class ToolHeaders:
    """Header annotations of the tools that have been listed."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[ParamHeader, ...]] = {}

    def learn(self, tools: list[ToolDescription]) -> list[ToolDescription]:
        """Store the annotations of tools, and return the tools whose annotations are valid."""
        usable: list[ToolDescription] = []
        for tool in tools:
            try:
                found = find_annotations(tool.input_schema)
            except (ValueError, RecursionError) as exc:
                _logger.warning("Left out the tool %s: %s", tool.name, exc)
                continue
            if found:
                self._known[tool.name] = found
            else:
                self._known.pop(tool.name, None)
            usable.append(tool)
        return usable

    def of(self, tool: str, arguments: Mapping[str, Any]) -> Mapping[str, str]:
        """Return the headers of a call."""
        known = self._known.get(tool)
        return headers_of(known, arguments) if known else _NO_HEADERS


def headers_of(known: Iterable[ParamHeader], arguments: Mapping[str, Any]) -> Mapping[str, str]:
    """Return the headers for the arguments of a call."""
    headers: dict[str, str] = {}
    for param in known:
        text = _text(value_at(arguments, param.path))
        if text is not None:
            headers[param.header.decode().title()] = encode_value(text)
    return headers


def _text(value: Any) -> str | None:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return value
    return str(value) if isinstance(value, int) else None
