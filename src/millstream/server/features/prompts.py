"""Prompts: descriptions for clients, and how their functions are run."""

import copy
from collections.abc import Callable
from typing import Any, Unpack

from millstream.server.calls.context import Context
from millstream.server.calls.sync_context import SyncContext
from millstream.server.features.tools import runner
from millstream.server.functions.description import Labels, described
from millstream.server.functions.plan import plan


class Prompt:
    """One registered prompt."""

    __slots__ = ("_described", "name", "plan", "run")

    def __init__(
        self,
        function: Callable[..., Any],
        *,
        name: str | None = None,
        thread: bool = True,
        home: object = None,
        **labels: Unpack[Labels],
    ) -> None:
        self.plan = plan(function, kind="prompt", contexts=(Context, SyncContext), name=name)
        self.name = self.plan.name
        self.run = runner(self.plan, thread=thread, home=home)
        required = set(self.plan.input_schema.get("required", ()))
        properties = self.plan.input_schema.get("properties", {})
        arguments = [
            {
                "name": each,
                **{key: properties[each][key] for key in ("title", "description") if key in properties.get(each, {})},
                **({"required": True} if each in required else {}),
            }
            for each in self.plan.parameters
        ]
        self._described = described({"name": self.name}, self.plan.description, labels, arguments=arguments or None)

    def describe(self) -> dict[str, Any]:
        """The description in the newest shape."""
        return self._described

    def named(self, name: str) -> "Prompt":
        """The same prompt under another name."""
        other = copy.copy(self)
        other.name = name
        other._described = {**self._described, "name": name}
        return other
