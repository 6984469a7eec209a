"""Prompts: descriptions for clients, and how they are made."""

import copy
from collections.abc import Callable, Collection
from typing import Any, Unpack

from millstream._server.features.hooks import Hooks, hooked
from millstream._server.features.sources import Source, checked, source_of
from millstream._server.functions.description import Labels, Names, check_options, described, shown_of
from millstream._server.functions.plan import name_of


class PromptOptions(Labels, total=False):
    """Options of ``@mcp.prompt``."""

    name: str | None
    thread: bool
    """A `def` function runs in a worker thread, unless this is false."""
    scopes: Names | None
    """What a caller must have been granted; others neither see the prompt nor get it."""


class Prompt:
    """One registered prompt."""

    __slots__ = (
        "_described", "choices", "enabled", "name", "parameters", "path", "read", "run", "scopes", "tags", "visible",
    )  # fmt: skip

    def __init__(self, source: Source, *, scopes: Collection[str] | None = None, **labels: Unpack[Labels]) -> None:
        self.name = source.name
        self.read = source.read
        """``read(texts)``: the arguments from their texts; raises `ArgumentError`."""
        self.scopes = frozenset(scopes or ())
        self.tags, self.enabled, self.visible = shown_of(labels)
        self.path: tuple[Hooks, ...] = ()
        """The middleware of each server through which it is reached, where any of them has some."""
        self.run = checked(source.run, self.scopes)
        """``run(arguments, call)``: an awaitable of the messages."""
        self.parameters = source.parameters
        self.choices = source.choices
        required = set(source.schema.get("required", ()))
        properties = source.schema.get("properties", {})
        arguments = [
            {
                "name": each,
                **{key: properties[each][key] for key in ("title", "description") if key in properties[each]},
                **({"required": True} if each in required else {}),
            }
            for each in self.parameters
        ]
        self._described = described({"name": self.name}, source.description, labels, arguments=arguments or None)

    def describe(self) -> dict[str, Any]:
        """The description in the newest shape."""
        return self._described

    def within(self, hooks: Hooks) -> "Prompt":
        """The same prompt with the middleware of its server around it."""
        other = copy.copy(self)
        other.path = (hooks, *self.path)
        other.run = checked(hooked("prompts", self.name, self.run, self.read, hooks), self.scopes)
        return other

    def named(self, name: str) -> "Prompt":
        """The same prompt under another name."""
        other = copy.copy(self)
        other.name = name
        other._described = {**self._described, "name": name}
        return other


def prompt_of(function: Callable[..., Any], *, home: object = None, **options: Unpack[PromptOptions]) -> Prompt:
    """A prompt of a function.

    Args:
        function: any callable; its arguments arrive as text.
        home: the server that it is registered on.
        options: see `PromptOptions` and `Labels`.

    Raises:
        TypeError, ValueError: it cannot be served as it is written; the text says what can.
    """
    check_options(name_of(function), options, PromptOptions)
    rest: dict[str, Any] = dict(options)
    about = {key: rest.pop(key) for key in ("name", "thread") if key in rest}
    return Prompt(source_of(function, "prompt", home=home, **about), **rest)
