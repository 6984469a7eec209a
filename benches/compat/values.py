"""The protocol's values that the door makes, as those of an installed SDK: its tests ask for its own classes."""

import re
from typing import Any

from millstream.compat import _types as ours
from millstream.compat import types as public

_HUMP = re.compile(r"(?<=[a-z0-9])([A-Z])")
_KINDS = {
    "TextContent": "text",
    "ImageContent": "image",
    "AudioContent": "audio",
    "ResourceLink": "resource_link",
    "EmbeddedResource": "resource",
    "PromptReference": "ref/prompt",
    "ResourceTemplateReference": "ref/resource",
}


class Factory:
    """Makes values of one class of the SDK, from the names that the door uses."""

    def __init__(self, made: Any) -> None:
        self.made = made
        self._fields: dict[str, str] = {}
        for name, field in made.model_fields.items():
            self._fields[_HUMP.sub(r"_\1", name).lower()] = field.alias or name

    def __call__(self, **members: Any) -> Any:
        kind = _KINDS.get(self.made.__name__)
        if kind is not None:
            members.setdefault("type", kind)
        return self.made.model_validate({self._fields.get(name, name): value for name, value in members.items()})

    def model_validate(self, value: Any) -> Any:
        """As the class does."""
        return self.made.model_validate(value)

    def __or__(self, other: Any) -> Any:
        return self.made | other

    def __ror__(self, other: Any) -> Any:
        return other | self.made


def use(theirs: Any) -> None:
    """Let the door make the values of this module."""
    for name in public.__all__:
        made = getattr(theirs, name, None)
        if hasattr(ours, name) and isinstance(made, type) and hasattr(made, "model_fields"):
            setattr(ours, name, Factory(made))
