"""The gateway: servers elsewhere, and APIs, as part of this one.

``Server.upstream`` adds one. Import `UpstreamConfig` to write a list of them.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from millstream.gateway.upstream import UpstreamConfig

_HOMES = {"UpstreamConfig": "upstream"}
"""Public name -> module, loaded at first use."""

__all__ = ["UpstreamConfig"]


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'millstream.gateway' has no attribute {name!r}")
    value = getattr(import_module(f"millstream.gateway.{home}"), name)
    globals()[name] = value
    return value
