"""What tools, resources and prompts say about themselves: the optional members of their descriptions."""

from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

from msgspec import Struct, to_builtins

from millstream.protocol.content import Icon


class Labels(TypedDict, total=False):
    """Keyword options shared by the decorators."""

    title: str | None
    description: str | None
    """Instead of the docstring."""
    annotations: Struct | Mapping[str, Any] | None
    icons: Sequence[Icon]
    meta: Mapping[str, Any] | None
    """`_meta` of the listed item."""


def described(head: Mapping[str, Any], docstring: str, labels: Labels, **more: Any) -> dict[str, Any]:
    """A description in the newest shape, without the members that were not given.

    Raises:
        TypeError: an option that no decorator of this kind has.
    """
    unknown = sorted(labels.keys() - Labels.__optional_keys__)
    if unknown:
        raise TypeError(f"{head['name']}: there is no option {unknown[0]!r} here; check its spelling")
    description = labels.get("description")
    annotations, icons, meta = labels.get("annotations"), labels.get("icons"), labels.get("meta")
    members: dict[str, Any] = {
        **head,
        "title": labels.get("title"),
        "description": description if description is not None else docstring or None,
        **more,
        "annotations": to_builtins(annotations) if annotations else None,
        "icons": [to_builtins(icon) for icon in icons] if icons else None,
        "_meta": dict(meta) if meta else None,
    }
    return {key: value for key, value in members.items() if value is not None}
