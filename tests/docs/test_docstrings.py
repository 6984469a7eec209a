import inspect
import re
from typing import Any

import pytest

import millstream
from cases import for_each
from millstream import Context, Server, SyncContext, agent, auth, client, hub, middleware, protocol, testing

pytestmark = pytest.mark.check

EXAMPLE = re.compile(r"``[^`]*[(=:@.][^`]*``|^ *>>> ", re.MULTILINE)
"""A piece of code, or lines that are typed in."""


def public() -> dict[str, Any]:
    """Yield public names, and the methods of a server and a context."""
    names: dict[str, Any] = {}
    for module in (millstream, agent, auth, client, hub, middleware, protocol, testing):
        names |= {f"{module.__name__}.{name}": getattr(module, name) for name in module.__all__}
    for holder in (Context, SyncContext, Server):
        for name, member in inspect.getmembers(holder):
            if not name.startswith("_") and (inspect.isfunction(member) or isinstance(member, property)):
                names[f"{holder.__name__}.{name}"] = member
    return {name: value for name, value in names.items() if value.__doc__ and not _is_alias(value)}


def _is_alias(value: Any) -> bool:
    return (
        isinstance(value, str | int | tuple)
        or inspect.isbuiltin(value)
        or getattr(value, "_is_protocol", False)
        or (type(value).__module__ in ("typing", "collections.abc", "types") and not inspect.isfunction(value))
    )


PLAIN = frozenset(
    (
        "Server.name", "Server.version", "Server.settings", "Server.registry", "Server.start", "Server.stop",
        "Server.running", "SyncContext.session", "SyncContext.hub", "SyncContext.once",
        "SyncContext.close_stream", "SyncContext.notify", "Context.session", "Context.close_stream"
    )
)  # fmt: skip
"""Attributes that one reads, and what `Context` shows already."""


@for_each("name", sorted(set(public()) - PLAIN))
def test_public_docstrings_have_an_example(name: str) -> None:
    assert EXAMPLE.search(inspect.getdoc(public()[name]) or ""), inspect.getdoc(public()[name])


def test_exceptions_of_the_example_rule_exist() -> None:
    assert set(public()) >= PLAIN
