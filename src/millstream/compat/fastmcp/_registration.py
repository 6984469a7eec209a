"""What a server of the door offers: the decorators, and the methods that add, remove and list."""

import logging
from collections.abc import Callable, Sequence
from typing import Any

from msgspec import Struct

from millstream._app.server import Server
from millstream._app.tree import prefixed
from millstream.compat import _types as types
from millstream.compat.fastmcp._exceptions import ToolError
from millstream.compat.fastmcp._functions import known
from millstream.compat.fastmcp._items import prompt_item, resource_item, template_item, tool_item
from millstream.compat.fastmcp._marking import PromptMeta, ResourceMeta, marks_of
from millstream.compat.fastmcp._prompts import Prompt
from millstream.compat.fastmcp._resources import FunctionResource, Resource
from millstream.compat.fastmcp._signatures import signature_of
from millstream.compat.fastmcp._templates import ResourceTemplate
from millstream.compat.fastmcp._tools import Tool
from millstream.compat.fastmcp._ways import Ways

logger = logging.getLogger("millstream")

_KINDS: dict[str, str] = {"tools": "Tool", "resources": "Resource", "templates": "Template", "prompts": "Prompt"}
_ITEMS: dict[str, Callable[..., Any]] = {
    "tools": tool_item,
    "resources": resource_item,
    "templates": template_item,
    "prompts": prompt_item,
}


class Rule(Struct, frozen=True):
    """What was said about what is visible."""

    kinds: frozenset[str]
    names: frozenset[str]
    tags: frozenset[str]
    hide: bool

    def means(self, kind: str, key: str, item: Any) -> bool:
        """Whether it is about an item."""
        if kind not in self.kinds:
            return False
        named = item.name in self.names or key in self.names
        return named or bool(item.tags & self.tags) or not (self.names or self.tags)


class Offered:
    """The tools, resources, templates and prompts of one server, as the program gave them."""

    def __init__(self, server: Any, engine: Server, ways: Ways, on_duplicate: dict[str, str]) -> None:
        self._server = server
        self._engine = engine
        self.on_duplicate = on_duplicate
        self.ways = ways
        self.tools: dict[str, Tool] = {}
        self.resources: dict[str, Resource] = {}
        self.templates: dict[str, ResourceTemplate] = {}
        self.prompts: dict[str, Prompt] = {}
        self.completion: Callable[..., Any] | None = None
        self.include_tags: set[str] | None = None
        self.exclude_tags: set[str] = set()
        self.rules: list[Rule] = []

    def add(self, kind: str, item: Any) -> Any:
        """Add an item; one of the same name makes way or stays, as the server's option says.

        Raises:
            ValueError: there is one of that name, and the server refuses a second one.
        """
        items: dict[str, Any] = getattr(self, kind)
        key: str = item.key
        if key in items:
            way = self.on_duplicate[kind]
            if way == "error":
                raise ValueError(f"{_KINDS[kind]} already exists: {key}")
            if way in ("warn", "keep"):
                logger.warning("%s already exists: %s", _KINDS[kind], key)
            if way == "ignore" or (way in ("warn", "keep", "quiet") and self.ways.keeps_first):
                return items[key]
            self.remove(kind, key)
        items[key] = item
        self.show(kind, item)
        return item

    def remove(self, kind: str, key: str) -> None:
        """Take an item away. Raises KeyError when there is none."""
        del getattr(self, kind)[key]
        self._hide(kind, key)

    def visible(self, kind: str) -> list[Any]:
        """The items of a kind that clients see."""
        return [item for item in getattr(self, kind).values() if self._is_visible(kind, item)]

    def _is_visible(self, kind: str, item: Any) -> bool:
        return item.enabled and self.sees(kind, item.key, item)

    def sees(self, kind: str, key: str, item: Any) -> bool:
        """Whether clients of this server see an item of its own, or of a mounted server, that has this key here."""
        return not self._hides(kind, key, item) and self._has_tags(item)

    def _hides(self, kind: str, key: str, item: Any) -> bool:
        """Whether the last rule about an item hides it."""
        return next((rule.hide for rule in reversed(self.rules) if rule.means(kind, key, item)), False)

    def show(self, kind: str, item: Any) -> None:
        """Let clients see an item, or not, as it says now."""
        definition = self._engine.definition
        shown = item.key in getattr(definition.registry, kind)
        if self._is_visible(kind, item) and not shown:
            definition.add(kind, item.key, _ITEMS[kind](self._server, item, definition))
        elif shown and not self._is_visible(kind, item):
            self._hide(kind, item.key)

    def _hide(self, kind: str, key: str) -> None:
        definition = self._engine.definition
        if key in getattr(definition.registry, kind):
            definition.remove(kind, key)

    def refresh(self) -> None:
        """Look again at what clients may see."""
        for kind in _KINDS:
            for item in list(getattr(self, kind).values()):
                self.show(kind, item)
        self.screen()

    def screen(self) -> None:
        """Let clients see what is mounted here, or not, by what this server hides."""
        definition = self._engine.definition
        for server, prefix in self._server._mounted:
            for kind in _KINDS:
                for item in getattr(server.offered, kind).values():
                    self._screen(definition, server, kind, item, prefixed(kind, item.key, prefix))

    def _screen(self, definition: Any, server: Any, kind: str, item: Any, key: str) -> None:
        shown = key in getattr(definition.registry, kind)
        wanted = self.sees(kind, key, item)
        if shown and not wanted:
            definition.registry.remove(kind, key)
        elif wanted and not shown:
            own = getattr(server.engine.registry, kind).get(item.key)
            if own is not None:
                definition.registry.add(kind, key, own.named(key).within(definition.hooks))

    def _has_tags(self, item: Any) -> bool:
        if item.tags & self.exclude_tags:
            return False
        return self.include_tags is None or bool(item.tags & self.include_tags)

    def complete_by(self, function: Callable[..., Any]) -> None:
        """Complete every argument by this function."""
        self.completion = function
        self.complete()

    def complete(self) -> None:
        """Let the server and those that it is mounted on complete."""
        registry = self._engine.registry
        registry.completes = self._server.run_completion
        registry.offer("completions")


class Registration:
    """The decorators and methods of `FastMCP` that add and list."""

    ways: Ways
    offered: Offered
    strict: bool
    _kind_of_tool: type[Tool] = Tool

    # Tools

    def tool(
        self,
        first: Any = None,
        /,
        title: str | None = None,
        description: str | None = None,
        *,
        name: str | None = None,
        **options: Any,
    ) -> Any:
        """Register a function as a tool: ``@mcp.tool()``, ``@mcp.tool``, ``@mcp.tool("name")``, or a plain call.

        Args:
            first: the name, or the function.
            name: instead of the function's own.
            title: for people.
            description: instead of the docstring.
            options: `annotations`, `icons`, `meta`, `structured_output`, `output_schema`, `tags`, `enabled`,
                `exclude_args`, `timeout`, `run_in_thread`, as the other libraries have them.
        """
        return self._decorated(first, name, lambda each, own: self._add_tool(each, own, title, description, options))

    def add_tool(self, fn: Any, name: str | None = None, **options: Any) -> Any:
        """Register a function, or a `Tool`, as a tool. Gives the tool."""
        if isinstance(fn, Tool):
            return self.offered.add("tools", fn)
        return self._add_tool(fn, name, options.pop("title", None), options.pop("description", None), options)

    def _add_tool(self, fn: Any, name: Any, title: Any, description: Any, options: dict[str, Any]) -> Any:
        options = {"strict": self.strict, **options}
        labels = {"title": title, "description": description, "ways": self.ways}
        made = self._kind_of_tool.from_function(fn, name, **labels, **known(Tool, options))
        return self.offered.add("tools", made)

    def remove_tool(self, name: str, version: str | None = None) -> None:
        """Take a tool away.

        Raises:
            ToolError: there is none of that name.
        """
        if name not in self.offered.tools:
            raise ToolError(f"Unknown tool: {name}")
        self.offered.remove("tools", name)

    # Resources

    def resource(self, uri: str, **options: Any) -> Callable[[Any], Any]:
        """Register a function as a resource, or as a template when the URI has ``{variables}``.

        Args:
            uri: where clients read it.
            options: `name`, `title`, `description`, `mime_type`, `icons`, `annotations`, `meta`, `tags`, `enabled`.
        """
        if callable(uri):
            raise TypeError(
                "The @resource decorator was used incorrectly. It requires a URI as the first argument. "
                "Did you forget to call it? Use @resource('uri') instead of @resource"
            )

        def decorate(function: Any) -> Any:
            self.add_resource_fn(function, uri, **options)
            return function

        return decorate

    def add_resource_fn(self, fn: Any, uri: str, **options: Any) -> Any:
        """Register a function as a resource or template."""
        options = known(ResourceTemplate, options)
        signature = signature_of(fn, self.ways, name=options.get("name"))
        if "{" in uri or signature.names:
            made: Any = ResourceTemplate.from_function(fn, uri, ways=self.ways, **options)
            return self.offered.add("templates", made)
        return self.offered.add("resources", FunctionResource.from_function(fn, uri, ways=self.ways, **options))

    def add_resource(self, resource: Any) -> Any:
        """Register a `Resource`, or a function with `@resource`. Gives what is registered."""
        if marks := marks_of(resource, ResourceMeta):
            return self.add_resource_fn(resource, **marks)
        return self.offered.add("resources", resource)

    def add_template(self, template: ResourceTemplate) -> Any:
        """Register a `ResourceTemplate`."""
        return self.offered.add("templates", template)

    async def get_resource(self, uri: Any, version: Any = None) -> Any:
        """The resource with that URI, or None."""
        return self.offered.resources.get(str(uri))

    async def get_resource_template(self, uri: Any, version: Any = None) -> Any:
        """The template that a URI is of, or None."""
        known = self.offered.templates
        return known.get(str(uri)) or next(
            (each for each in known.values() if each.matches(str(uri)) is not None), None
        )

    # Prompts

    def prompt(
        self,
        first: Any = None,
        /,
        title: str | None = None,
        description: str | None = None,
        *,
        name: str | None = None,
        **options: Any,
    ) -> Any:
        """Register a function as a prompt; see `tool` for the forms.

        Args:
            first: the name, or the function.
            name: instead of the function's own.
            title: for people.
            description: instead of the docstring.
            options: `icons`, `meta`, `tags`, `enabled`.
        """

        def add(each: Any, own: Any) -> Any:
            made = Prompt.from_function(
                each, own, ways=self.ways, title=title, description=description, **known(Prompt, options)
            )
            return self.offered.add("prompts", made)

        return self._decorated(first, name, add)

    def add_prompt(self, prompt: Any) -> Any:
        """Register a `Prompt`, or a function as one. Gives the one that is registered."""
        if isinstance(prompt, Prompt):
            return self.offered.add("prompts", prompt)
        options = marks_of(prompt, PromptMeta)
        name = options.pop("name", None)
        made = Prompt.from_function(prompt, name, ways=self.ways, **known(Prompt, options))
        return self.offered.add("prompts", made)

    def remove_prompt(self, name: str) -> None:
        """Take a prompt away. Raises ValueError when there is none."""
        if name not in self.offered.prompts:
            raise ValueError(f"Unknown prompt: {name}")
        self.offered.remove("prompts", name)

    def completion(self, handler: Any = None) -> Any:
        """Register what completes arguments: ``async def f(ref, argument, context)`` gives a `Completion` or None."""

        def register(function: Any) -> Any:
            self.offered.complete_by(function)
            return function

        return register if handler is None else register(handler)

    add_completion_handler = completion

    @staticmethod
    def _decorated(first: Any, name: str | None, add: Callable[[Any, Any], Any]) -> Any:
        if first is not None and not isinstance(first, str):
            add(first, name)  # `@mcp.tool` without parentheses, or a plain call
            return first
        name = name or first

        def decorate(function: Any) -> Any:
            add(function, name)
            return function

        return decorate

    # What is visible

    def enable(self, *, names: Sequence[str] = (), tags: Sequence[str] = (), components: Sequence[str] = ()) -> None:
        """Show what was hidden, by name or tag."""
        self._change(names, tags, components, hide=False)

    def disable(self, *, names: Sequence[str] = (), tags: Sequence[str] = (), components: Sequence[str] = ()) -> None:
        """Hide items, by name or tag."""
        self._change(names, tags, components, hide=True)

    def _change(self, names: Sequence[str], tags: Sequence[str], components: Sequence[str], *, hide: bool) -> None:
        kinds = frozenset(f"{each}s" for each in components or ("tool", "resource", "template", "prompt"))
        self.offered.rules.append(Rule(kinds, frozenset(names), frozenset(tags), hide))
        self.offered.refresh()


def labels_of(item: Any) -> types.Wire:
    """An item as clients see it."""
    for method in ("to_mcp_tool", "to_mcp_resource", "to_mcp_template", "to_mcp_prompt"):
        if hasattr(item, method):
            found: types.Wire = getattr(item, method)()
            return found
    raise TypeError(f"{item!r} is nothing that clients see")
