"""What an upstream has changed in its definitions, in words for the operator.

Models follow descriptions, and with ``trust = "follow"``, changed ones count at once. So the log has these changes:
which item, and what it says now.
"""

import logging
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from millstream._gateway.catalog.catalog import INSTRUCTIONS, Catalog, Description, StoredCatalog
from millstream._gateway.log import logger
from millstream._protocol.compose import escape_unseen
from millstream._protocol.redaction import redact_foreign
from millstream._text import shorten
from millstream.protocol import Json, encode, members

MAX_NAMED = 10
"""Maximum number of items that one warning names."""
_MAX_SHOWN = 160
"""Maximum characters of a text in a warning."""
_RESTLESS = 4
"""Number of lists in a row that change a definition. From then on, it isn't logged: it has a date or a counter."""
_COMPARED = (
    "title",
    "description",
    "instructions",
    "inputSchema",
    "outputSchema",
    "annotations",
    "execution",
    "arguments",
    "mimeType",
)
"""Members whose changes are logged, because models or clients act on them."""
_CONTEXT = 30
"""Characters to show before the first difference of a long text."""

Key = tuple[str, str]
"""Kind and upstream's name of an item."""


class ChangeLog:
    """Logs what one upstream has changed since its last lists.

    Args:
        name: Name of the upstream.
        stored: The lists that all workers share. Only one of them logs a change.
        is_used: Returns whether callers can use an item with this kind, upstream's name, and definition.
    """

    def __init__(self, name: str, stored: StoredCatalog, is_used: Callable[[str, str, Description], bool]) -> None:
        self._name = name
        self._stored = stored
        self._is_used = is_used
        self._in_a_row: dict[Key, int] = {}
        """Item -> number of lists in a row in which it has changed."""
        self.count = 0
        """Number of changed and new definitions."""
        self.last: Json | None = None
        """The last change: `at`, the Unix time of the lists, and `text`."""

    async def record(self, before: Catalog, found: Catalog) -> None:
        """Log what has changed."""
        changed, at = self._compare(before, found), ""
        if changed and self._stored.shared and (shared := await self._stored.load()) is not None:
            at = str(shared.taken_at)  # another worker may have logged the change, and then it's stored
            changed = {key: each for key, each in changed.items() if key in self._compare(shared, found)}
        self._in_a_row = {key: self._in_a_row.get(key, 0) + 1 for key, (old, _) in changed.items() if old is not None}
        named = [key for key in sorted(changed) if self._in_a_row.get(key, 0) <= _RESTLESS]
        if not named:
            return
        text = "; ".join(self._describe(key, *changed[key]) for key in named[:MAX_NAMED])
        if len(named) > MAX_NAMED:
            text += f"; and {len(named) - MAX_NAMED} more"
        if not await self._stored.claim(at + text):
            return
        self.count += len(named)
        self.last = {"at": found.taken_at, "text": text}
        has_only_content = all(kind == "resources" and old is None for (kind, _), (old, _) in changed.items())
        level = logging.INFO if has_only_content else logging.WARNING  # files and records come and go
        logger.log(level, "The upstream %s has changed what callers get: %s", self._name, text)

    def _describe(self, key: Key, old: Description | None, new: Description) -> str:
        if self._in_a_row.get(key, 0) == _RESTLESS:
            return f"{describe_changes(*key, {}, {})[0]} changes with every list, so its changes aren't logged any more"
        return _describe(*key, old, new)

    def _compare(self, before: Catalog, found: Catalog) -> dict[Key, tuple[Description | None, Description]]:
        """Return the items that callers can use and that are new or have changed, with the old and new definition."""
        known: Mapping[Key, Description] = {(kind, name): each for kind, name, each in before.pinned()}
        changed: dict[Key, tuple[Description | None, Description]] = {}
        for kind, name, new in found.pinned():
            old = known.get((kind, name))
            is_changed = old is None or (old != new and _select_compared(old) != _select_compared(new))
            if is_changed and (kind == INSTRUCTIONS[0] or self._is_used(kind, name, new)):
                changed[kind, name] = old, new
        return changed


def _select_compared(definition: Description) -> Description:
    compared = {name: definition[name] for name in _COMPARED if name in definition}
    if "lastModified" in members(compared.get("annotations")):
        compared["annotations"] = {
            name: each for name, each in compared["annotations"].items() if name != "lastModified"
        }
    return compared


def _describe(kind: str, name: str, old: Description | None, new: Description) -> str:
    item, changes = describe_changes(kind, name, old, new)
    text = ", ".join(changes.values())
    return f"{item}: {text}" if old is not None else f"new {item}{text.removeprefix('new')}"


def describe_changes(kind: str, name: str, old: Description | None, new: Description) -> tuple[str, dict[str, str]]:
    """Return an item's kind and name, and its changed members with what they are now. A new item has one, `new`."""
    item = name if kind == INSTRUCTIONS[0] else f"{kind[:-1]} {_quote(name)}"
    if old is None:
        text = new.get("description") or new.get("instructions") or new.get("title")
        return item, {"new": f"new: {_quote(text)}" if text else "new"}
    before, after = _select_compared(old), _select_compared(new)
    return item, {
        each: f"{each} is now {_quote(after.get(each), before.get(each))}"
        for each in _COMPARED
        if _as_json(before.get(each)) != _as_json(after.get(each))  # in Python, 1 equals True
    }


def _as_json(value: Any) -> bytes:
    return msgspec.json.encode(value, order="sorted")


def _quote(value: Any, before: Any = "") -> str:
    """Return a value in quotes, if it's long, from where it differs from the one before."""
    text, old = (each if isinstance(each, str) else encode(each).decode() for each in (value, before))
    same = next(
        (at for at, (one, other) in enumerate(zip(text, old, strict=False)) if one != other), min(len(text), len(old))
    )
    start = max(0, same - _CONTEXT) if len(text) > _MAX_SHOWN else 0
    return repr(
        "…" * (start > 0) + shorten(escape_unseen(redact_foreign(text[start : start + 2 * _MAX_SHOWN])), _MAX_SHOWN)
    )
