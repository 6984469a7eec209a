"""`_meta` of a request: attributes, as the SDK has it, and items by their names on the wire, as fastmcp has it."""

from collections.abc import Iterable
from typing import Any

import msgspec

from millstream._server.calls.call import Call
from millstream.compat import _types as types


class Meta(types.Wire):
    """`_meta` of a request."""

    progress_token: str | int | None = None

    def items(self) -> Iterable[tuple[str, Any]]:
        """Names and values."""
        return self.model_dump(by_alias=True, exclude_none=True).items()

    def keys(self) -> Iterable[str]:
        """The names."""
        return [name for name, _ in self.items()]

    def get(self, name: str, default: Any = None) -> Any:
        """One value, if it's there."""
        return dict(self.items()).get(name, default)

    def __getitem__(self, name: str) -> Any:
        """One value. Raises KeyError when there is none."""
        return dict(self.items())[name]


def meta_of(call: Call) -> Meta | None:
    """What a call says; None without."""
    found: dict[str, Any] | None = None
    if b'"_meta"' in call.params:
        found = msgspec.json.decode(call.params).get("_meta")
    if call.token is not None:
        found = {**(found or {}), "progressToken": call.token}
    return None if found is None else Meta.model_validate(found)
