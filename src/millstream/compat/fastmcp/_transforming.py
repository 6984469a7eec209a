"""Tools made of tools, as fastmcp's `Tool.from_tool`: other names, other arguments, or a function around the call."""

import inspect
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from functools import wraps
from typing import Any

from millstream._protocol.json_schema import is_array, is_object
from millstream.compat._pydantic_parts import TypeAdapter
from millstream.compat.fastmcp._functions import call_function, known
from millstream.compat.fastmcp._injection import RunInThread
from millstream.compat.fastmcp._marking import ToolMeta, marks_of
from millstream.compat.fastmcp._outputs import promise_by_hand
from millstream.compat.fastmcp._signatures import Signature, signature_of, untitled
from millstream.compat.fastmcp._tools import NotSet, Tool, ToolResult
from millstream.compat.fastmcp._ways import STANDALONE

_DEFINITION = "#/$defs/"


@dataclass(kw_only=True)
class ArgTransform:
    """What becomes of one argument of a tool. What isn't given stays as it is.

    Args:
        name: its new name.
        description: its new description; None takes it away.
        default: what it is if a client leaves it out, or always if it is hidden.
        default_factory: makes the value of a hidden argument, for each call.
        type: its new type.
        hide: clients don't see it.
        required: True takes the default away.
        examples: for the model.

    Raises:
        ValueError: some of these exclude each other.
    """

    name: Any = NotSet
    description: Any = NotSet
    default: Any = NotSet
    default_factory: Any = NotSet
    type: Any = NotSet
    hide: bool = False
    required: Any = NotSet
    examples: Any = NotSet

    def __post_init__(self) -> None:
        has_default, has_factory = self.default is not NotSet, self.default_factory is not NotSet
        if has_default and has_factory:
            raise ValueError("Cannot specify both 'default' and 'default_factory'")
        if has_factory and not self.hide:
            raise ValueError("default_factory can only be used with hide=True: a schema can't say what it makes")
        if self.required is False:
            raise ValueError("Cannot specify 'required=False': give a default instead")
        if self.required is True and (has_default or has_factory):
            raise ValueError("Cannot specify 'required=True' with 'default' or 'default_factory'")
        if self.required is True and self.hide:
            raise ValueError("Cannot specify both 'hide=True' and 'required=True': nobody could give it")

    @property
    def always(self) -> bool:
        """Whether a hidden argument has a value of its own."""
        return self.default is not NotSet or self.default_factory is not NotSet

    def value(self) -> Any:
        """That value."""
        return self.default if self.default_factory is NotSet else self.default_factory()

    def schema(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """The schema of the argument; `given` is the one it had."""
        made = dict(given)
        if self.type is not NotSet:
            made |= untitled(TypeAdapter(self.type).json_schema())
        for word in ("description", "default", "examples"):
            value = getattr(self, word)
            if value is not NotSet:
                made[word] = value
        if self.description is None:
            del made["description"]
        if self.required is True:
            made.pop("default", None)
        return made


_SAME = ArgTransform()


class _Arguments:
    """The arguments of a tool under their new names."""

    def __init__(self, tool: Tool, changes: Mapping[str, ArgTransform]) -> None:
        properties: dict[str, Any] = tool.parameters.get("properties", {})
        if unknown := sorted(changes.keys() - properties.keys()):
            raise ValueError(f"Unknown arguments in transform_args: {', '.join(unknown)}. {tool.name} has: "
                             f"{', '.join(sorted(properties))}")  # fmt: skip
        needed = set(tool.parameters.get("required", ()))
        self.constants: dict[str, ArgTransform] = {}
        self.own: dict[str, str] = {}
        """New name -> the tool's own."""
        self.required: list[str] = []
        self.definitions: dict[str, Any] = dict(tool.parameters.get("$defs", {}))
        self.properties: dict[str, Any] = {}
        for own, schema in properties.items():
            change = changes.get(own, _SAME)
            if change.hide:
                if change.always:
                    self.constants[own] = change
                elif own in needed:
                    raise ValueError(f"Hidden parameter '{own}' has no default value in parent tool: give it one")
                continue
            name = own if change.name in (NotSet, None) else str(change.name)
            if name in self.own:
                raise ValueError(f"Multiple arguments would be mapped to the same names: {name}")
            self.own[name] = own
            self.properties[name] = self._raised(change.schema(schema))
            if change.required is True or (own in needed and change.default is NotSet):
                self.required.append(name)

    def _raised(self, schema: dict[str, Any]) -> dict[str, Any]:
        """A schema whose definitions stand with those of the others."""
        for name, definition in schema.pop("$defs", {}).items():
            if self.definitions.setdefault(name, definition) != definition:
                raise ValueError(f"$defs collision for '{name}': two types of that name. Rename one of them.")
        return schema

    def schema(self, around: Signature | None) -> dict[str, Any]:
        """What clients see, with the parameters of a function that stands around the tool."""
        properties, required = dict(self.properties), list(self.required)
        if around is not None:
            self._raised({"$defs": around.schema.get("$defs", {})})
            for name, schema in around.schema.get("properties", {}).items():
                properties[name] = {**schema, **properties.get(name, {})}
            required += around.schema.get("required", ())
        made: dict[str, Any] = {
            "type": "object",
            "properties": properties,
            "required": [name for name, each in properties.items() if name in required and "default" not in each],
            "additionalProperties": False,
        }
        used = _used(properties, self.definitions)
        return {**made, "$defs": {name: self.definitions[name] for name in used}} if used else made

    def given(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """What the tool itself gets.

        Raises:
            TypeError: some are missing or unknown.
        """
        if unknown := sorted(arguments.keys() - self.own.keys()):
            raise TypeError(f"Got unexpected keyword argument(s): {', '.join(unknown)}")
        if missing := sorted(set(self.required) - arguments.keys()):
            raise TypeError(f"Missing required argument(s): {', '.join(missing)}")
        made = {self.own[name]: value for name, value in arguments.items()}
        return made | {own: change.value() for own, change in self.constants.items()}


def _used(node: Any, definitions: Mapping[str, Any]) -> list[str]:
    """The definitions that a schema leads to."""
    found: dict[str, None] = {}
    rest: list[Any] = [node]
    while rest:
        here = rest.pop()
        if is_array(here):
            rest += here
        elif is_object(here):
            name = str(here.get("$ref", "")).removeprefix(_DEFINITION)
            if name in definitions and name not in found:
                found[name] = None
                rest.append(definitions[name])
            rest += here.values()
    return [name for name in definitions if name in found]


class StandaloneTool(Tool):
    """A tool as the package fastmcp has it, which can be made of another one."""

    @classmethod
    def from_function(cls, fn: Callable[..., Any], name: str | None = None, *given: Any, **options: Any) -> Tool:
        """A tool of a function; the options are those of ``@mcp.tool``, and what ``@tool`` noted at it counts.

        Raises:
            InvalidSignature, ValueError: the function cannot be a tool.
        """
        noted = known(Tool, marks_of(fn, ToolMeta))
        told = {key: value for key, value in options.items() if value is not None or key not in noted}
        options = {"ways": STANDALONE, **noted, **told}
        own = options.pop("name", None)
        return super().from_function(fn, name or own, *given, **options)

    @classmethod
    def from_tool(cls, tool: Any, name: str | None = None, **changes: Any) -> "TransformedTool":
        """A tool made of another one, or of a function.

        Args:
            tool: that.
            name: by default the same.
            changes: `title`, `description`, `tags`, `annotations`, `meta`, `output_schema` and `enabled`, where they
                differ; `transform_args`, an `ArgTransform` for each argument that does; `transform_fn`, a function
                around the call, which calls the tool by `forward`.

        Raises:
            ValueError: it has no such arguments, or two would have one name.
        """
        return _transformed(tool, name, **changes)


_current: ContextVar["TransformedTool"] = ContextVar("millstream-transformed-tool")


class TransformedTool(StandaloneTool):
    """A tool that is made of another one, which `parent_tool` is."""

    def __init__(
        self, tool: Tool, arguments: _Arguments, around: Signature | None, *, output: Any, open_: bool, **shared: Any
    ) -> None:
        signature = tool.signature if around is None else around
        promise = None if output is None else promise_by_hand(output, STANDALONE)
        super().__init__(signature, tool.ways, promise=promise, **shared)
        self.parent_tool = tool
        self.parameters: dict[str, Any] = arguments.schema(around)
        self._arguments = arguments
        self._around = around
        self._open = open_
        """The function around it takes whatever comes."""

    async def _call(self, arguments: dict[str, Any], thread: RunInThread) -> Any:
        absent = self.parameters["properties"].items()
        arguments = {**{name: each["default"] for name, each in absent if "default" in each}, **arguments}
        token = _current.set(self)
        try:
            if self._around is None:
                return await self.forward(arguments, thread)
            declared = self._around.schema.get("properties", {})
            more = {name: value for name, value in arguments.items() if name not in declared}
            if more and not self._open:
                raise TypeError(f"Got unexpected keyword argument(s): {', '.join(sorted(more))}")
            values = self._around.read({name: each for name, each in arguments.items() if name in declared})
            return await call_function(self._around, {**values, **more}, thread)
        finally:
            _current.reset(token)

    async def forward(self, arguments: Mapping[str, Any], thread: RunInThread | None = None) -> ToolResult:
        """Call the tool that this one is made of, with the new names."""
        return await self.forward_raw(self._arguments.given(arguments), thread)

    async def forward_raw(self, arguments: Mapping[str, Any], thread: RunInThread | None = None) -> ToolResult:
        """Call it with its own names."""
        made: ToolResult = await self.parent_tool.run(dict(arguments), None, True, thread=thread)
        return made


def _here(name: str) -> TransformedTool:
    tool = _current.get(None)
    if tool is None:
        raise RuntimeError(f"{name}() can only be called within a transformed tool")
    return tool


async def forward(**arguments: Any) -> ToolResult:
    """Call the tool that this function is around, with the new names of its arguments.

    Raises:
        RuntimeError: there is none.
        TypeError: arguments are missing or unknown.
    """
    return await _here("forward").forward(arguments)


async def forward_raw(**arguments: Any) -> ToolResult:
    """Call the tool that this function is around, with its own names.

    Raises:
        RuntimeError: there is none.
    """
    return await _here("forward_raw").forward_raw(arguments)


def _transformed(  # noqa: PLR0913  what fastmcp can change
    tool: Any,
    name: str | None = None,
    *,
    title: Any = NotSet,
    description: Any = NotSet,
    tags: set[str] | None = None,
    transform_fn: Callable[..., Any] | None = None,
    transform_args: Mapping[str, ArgTransform] | None = None,
    annotations: Any = NotSet,
    output_schema: Any = NotSet,
    meta: Any = NotSet,
    enabled: bool = True,
) -> TransformedTool:
    if not isinstance(tool, Tool):
        tool = StandaloneTool.from_function(tool)
    arguments = _Arguments(tool, transform_args or {})
    around, open_ = (None, False) if transform_fn is None else _around(transform_fn, name or tool.name)
    if around is not None and not open_:
        missing = sorted(arguments.own.keys() - around.schema.get("properties", {}).keys())
        if missing:
            raise ValueError(f"Function missing parameters required after transformation: {', '.join(missing)}")
    if output_schema is NotSet:
        output_schema = tool.output_schema if around is None else _promised(around, tool)
    made = TransformedTool(
        tool,
        arguments,
        around,
        output=output_schema,
        open_=open_,
        title=tool.title if title is NotSet else title,
        description=tool.description if description is NotSet else description,
        icons=tool.icons,
        meta=tool.meta if meta is NotSet else meta,
        tags=tags or tool.tags,
        annotations=tool.annotations if annotations is NotSet else annotations,
        enabled=enabled,
    )
    if description is None:
        made.description = None
    made.name = name or tool.name
    return made


def _around(function: Callable[..., Any], name: str) -> tuple[Signature, bool]:
    """The signature of a function around a tool, and whether it takes whatever comes."""
    signature = inspect.signature(function, eval_str=True)
    named = [each for each in signature.parameters.values() if each.kind is not each.VAR_KEYWORD]
    if len(named) == len(signature.parameters):
        return signature_of(function, STANDALONE, name=name), False

    @wraps(function)
    async def takes_all(**values: Any) -> Any:
        found = function(**values)
        return await found if inspect.isawaitable(found) else found

    takes_all.__signature__ = signature.replace(parameters=named)  # type: ignore[attr-defined]  # inspect reads it
    return signature_of(takes_all, STANDALONE, name=name), True


def _promised(around: Signature, tool: Tool) -> dict[str, Any] | None:
    """The output schema of a function around a tool; without an annotation that makes one, it's that of the tool."""
    made = StandaloneTool.from_function(around.function, around.name).output_schema
    returns: Any = around.returns
    if made is None and not (inspect.isclass(returns) and issubclass(returns, ToolResult)):
        return tool.output_schema
    return made
