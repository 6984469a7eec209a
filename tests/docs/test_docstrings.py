import inspect
import re
from collections.abc import Iterator
from typing import Any

import pytest

import millstream
from cases import for_each
from millstream import (
    Context,
    Server,
    SyncContext,
    agent,
    auth,
    client,
    extensions,
    files,
    gateway,
    hub,
    items,
    middleware,
    protocol,
    stores,
    testing,
)
from millstream.auth import providers
from millstream.client import lowlevel
from millstream.compat import fastmcp
from millstream.extensions import apps, cards, events, http_post, skills, tasks

pytestmark = pytest.mark.check

EXAMPLE = re.compile(r"``[^`]*[(=:@.][^`]*``|^ *>>> ", re.MULTILINE)
"""A piece of code, or lines that are typed in."""


def public() -> dict[str, Any]:
    """Yield public names, and the methods of a server and a context."""
    names: dict[str, Any] = {}
    for module in (
        millstream,
        agent,
        auth,
        client,
        files,
        hub,
        items,
        lowlevel,
        middleware,
        protocol,
        testing,
    ):
        names |= {f"{module.__name__}.{name}": getattr(module, name) for name in module.__all__}
    for holder in (Context, SyncContext, Server):
        for name, member in inspect.getmembers(holder):
            if not name.startswith("_") and (inspect.isfunction(member) or isinstance(member, property)):
                names[f"{holder.__name__}.{name}"] = member
    return {name: value for name, value in names.items() if value.__doc__ and not _is_alias(value)}


def _is_alias(value: Any) -> bool:
    return (
        isinstance(value, str | int | tuple | frozenset)
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


def test_exceptions_to_the_example_rule_exist() -> None:
    assert set(public()) >= PLAIN


DESCRIBED = (
    millstream, agent, apps, auth, cards, client, events, extensions, files, gateway, http_post, hub, items,
    lowlevel, middleware, protocol, providers, skills, stores, tasks, testing, fastmcp,
)  # fmt: skip
"""Modules whose parameters are described."""
ENTRY = re.compile(r"^ *(\*{0,2}\w+(?:, \*{0,2}\w+)*): [^\s]", re.MULTILINE)
"""Entry of ``Args:``: one name, or several, and a description."""


def callables() -> Iterator[tuple[str, Any, str]]:
    """Yield public functions and methods that have a docstring, each with what its docstring says.

    A method that overrides a documented one needs no docstring, and neither does the constructor of what only the
    library constructs.
    """
    for module in DESCRIBED:
        for name in module.__all__:
            value = getattr(module, name)
            if inspect.isfunction(value):
                yield f"{module.__name__}.{name}", value, value.__doc__ or ""
            elif inspect.isclass(value) and value.__module__.startswith("millstream"):
                for key, member in vars(value).items():
                    function = inspect.unwrap(getattr(member, "__func__", member))
                    if inspect.isfunction(function) and not key.startswith("_") and not _is_inherited(value, key):
                        yield f"{module.__name__}.{name}.{key}", function, function.__doc__ or ""
                if "Args:" in (value.__doc__ or "") and "__init__" in vars(value):
                    yield f"{module.__name__}.{name}", inspect.unwrap(value.__init__), value.__doc__ or ""


def _is_inherited(kind: type, name: str) -> bool:
    return any(getattr(vars(base).get(name), "__doc__", None) for base in kind.__mro__[1:])


def test_parameters_are_described() -> None:
    missing: dict[str, set[str]] = {}
    for name, function, text in callables():
        described = {each.strip(" *") for entry in ENTRY.findall(text) for each in entry.split(",")}
        if text and (left := set(inspect.signature(function).parameters) - described - {"self", "cls"}):
            missing[name] = left
    assert missing == {}


def test_descriptions_mention_only_existing_parameters() -> None:
    wrong: dict[str, set[str]] = {}
    for name, function, text in callables():
        named = {each.strip(" *") for entry in entries_of(text, "Args") for each in entry.partition(":")[0].split(",")}
        if extra := named - set(inspect.signature(function).parameters):
            wrong[name] = extra
    assert wrong == {}


def test_descriptions_are_sentences() -> None:
    entries = [(name, entry) for name, _, text in callables() for entry in entries_of(text, "Args", "Raises")]
    assert len(entries) > 500
    assert [each for each in entries if not re.match(r"[\w*, .]+: [^a-z]", each[1]) or each[1][-1] not in ".`"] == []


def entries_of(text: str, *titles: str) -> Iterator[str]:
    """Yield the entries of sections of a docstring."""
    for title, section in re.findall(r"^(\w+):\n((?:(?: {4}.*)?(?:\n|$))+)", inspect.cleandoc(text), re.MULTILINE):
        if title in titles:
            yield from (each.strip() for each in re.split(r"\n(?= {4}\S)", section.rstrip()) if each.strip())
