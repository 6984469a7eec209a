"""The part of `Server` that changes what is offered while the server runs."""

from typing import Literal

from millstream._app.definition import Definition

Kind = Literal["tool", "resource", "prompt"]


class WithSwitches:
    """A server whose items come and go."""

    definition: Definition

    def remove_tool(self, name: str) -> None:
        """Take a tool away: ``mcp.remove_tool("add")``. Raises KeyError when there is none."""
        self.definition.remove("tools", name)

    def remove_prompt(self, name: str) -> None:
        """Take a prompt away: ``mcp.remove_prompt("review")``. Raises KeyError when there is none."""
        self.definition.remove("prompts", name)

    def remove_resource(self, uri: str) -> None:
        """Take a resource or template away: ``mcp.remove_resource("shop://1")``. Raises KeyError when there is none."""
        self.definition.remove(self.definition.kind_of("resource", uri), uri)

    def disable(self, kind: Kind | None = None, name: str = "", *, tag: str = "") -> None:
        """Stop offering something, on every worker, until it is enabled. Calls that run go on.

        To callers it is as if it weren't there, and clients that listen hear that the list changed.

        Args:
            kind: with a name; of a resource or template, the name is its URI.
            name: what is meant.
            tag: instead of these, everything with a tag. Nothing may have it.

        Raises:
            KeyError: there is none of that name.
            TypeError: neither a kind and a name nor a tag.

        Example:
            ``mcp.disable("tool", "order")``, or ``mcp.disable(tag="beta")``.
        """
        self._switch(kind, name, tag, on=False)

    def enable(self, kind: Kind | None = None, name: str = "", *, tag: str = "") -> None:
        """Offer something again that was disabled, in its place. Arguments and errors are those of `disable`.

        Example:
            ``mcp.enable("tool", "order")``, or ``mcp.enable(tag="beta")``.
        """
        self._switch(kind, name, tag, on=True)

    def _switch(self, kind: Kind | None, name: str, tag: str, *, on: bool) -> None:
        definition = self.definition
        if (kind is not None and bool(name)) is bool(tag) or (kind is not None and not name):
            raise TypeError('say what is meant: a kind and a name, as in ("tool", "order"), or tag="beta"')
        meant = definition.tagged(tag) if kind is None else [(definition.kind_of(kind, name), name)]
        for each, key in meant:
            definition.switch(each, key, on=on)
