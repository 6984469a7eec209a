"""Prompts: their descriptions and results."""

from collections.abc import Callable
from typing import Any, Unpack

from millstream._protocol import revisions
from millstream._protocol.jsonrpc import encode
from millstream._protocol.revisions import NEWEST
from millstream._server.calls.call import Call
from millstream._server.features.sources import Item, ItemSource, source_of
from millstream._server.functions.callables import name_of
from millstream._server.functions.description import Labels, Names, check_options, describe_item
from millstream._server.functions.results import encode_messages


class PromptOptions(Labels, total=False):
    """Options of ``@mcp.prompt``."""

    name: str | None
    thread: bool
    """Whether a `def` function runs in a worker thread."""
    scopes: Names | None
    """The scopes that a caller needs to see and get the prompt."""


class Prompt(Item):
    """A registered prompt."""

    kind = "prompts"

    def __init__(self, source: ItemSource, *, scopes: Names | None = None, **labels: Unpack[Labels]) -> None:
        super().__init__(source.name, source, scopes, labels)
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
        self._described = describe_item({"name": self.name}, source.description, labels, arguments=arguments or None)

    def encode(self, value: Any, call: Call) -> bytes:
        """Return the members of the result for the call's revision.

        Raises:
            LocalError: The value doesn't consist of messages.
        """
        members = encode_messages(value)
        if not call.revision.content >= NEWEST.content:
            members = revisions.prompt_messages(members, call.revision)
        description = self._described.get("description")
        return members if description is None else b'"description":%b,%b' % (encode(description), members)


def prompt_of(function: Callable[..., Any], *, home: object = None, **options: Unpack[PromptOptions]) -> Prompt:
    """Return a prompt for a function.

    Args:
        function: Any callable. Its arguments arrive as text.
        home: The server it's registered on.
        options: See `PromptOptions` and `Labels`.

    Raises:
        TypeError, ValueError: The function can't be a prompt. The text says what to change.
    """
    check_options(name_of(function), options, PromptOptions)
    rest: dict[str, Any] = dict(options)
    about = {key: rest.pop(key) for key in ("name", "thread") if key in rest}
    return Prompt(source_of(function, "prompt", home=home, **about), **rest)
