"""The plan of a function: everything about calling it that is known at registration.

A signature becomes an engine, which has the schemas for clients, and one closure that calls the function as directly as
possible. The closure runs for each call, after the arguments are read from JSON or strings. Arguments that the decoder
rejects are examined again, unless they're large.
"""

import functools
import inspect
from collections.abc import AsyncGenerator, Callable, Generator, Iterator, Mapping
from collections.abc import Set as AbstractSet
from contextlib import aclosing, contextmanager, suppress
from types import CodeType, MethodType
from typing import Any, Never, NoReturn, get_args, get_origin

import msgspec
from msgspec import UNSET, Struct, UnsetType
from msgspec.structs import astuple

from millstream._protocol.json_schema import (
    REF,
    Schema,
    drop_modules,
    has_no_number,
    is_array,
    is_integral,
    is_object,
    members,
    value_at_pointer,
)
from millstream._protocol.jsonrpc import Json, decode_object, too_many_values
from millstream._protocol.metadata import ParamHeader, find_annotations
from millstream._server.functions.dependencies import (
    Dependency,
    Function,
    RegistrationError,
    check_function,
    context_in,
    dependencies_in,
    hints_of,
    name_of,
    unwrap_function,
    warn_author,
)
from millstream._server.functions.description import describe
from millstream._server.functions.engine import (
    SchemaCheck,
    decode_integral,
    engine_of,
    may_be_content,
    output_from_schema,
)
from millstream._server.functions.msgspec_engine import MAX_VALUES, Engine, MsgspecEngine, Output, OutputError
from millstream._server.functions.parameters import (
    ITERATORS,
    ArgumentList,
    Kind,
    attributes_in,
    check_described,
    check_text_arguments,
    close_alias,
    normalize,
    parameter_of,
    refers_to_names,
    unpack_keywords,
)
from millstream._server.functions.problems import (
    MAX_LISTED,
    MAX_WALKED,
    SCALARS,
    Problem,
    choices_of,
    engine_problem,
    expected_text,
    explain,
    find_problems,
    kind_of,
)
from millstream._text import shorten

Invoker = Callable[[Any, Any], Any]
"""``call(arguments, context)``: returns the function's result, which can be an awaitable or a generator."""


class Plan(Struct, frozen=True):
    """How to call one function. Created by `plan`."""

    name: str
    kind: Kind
    description: str
    """The docstring up to its first section."""
    engine: Engine
    """The engine that reads arguments and encodes results."""
    decode: Callable[[Any], Any]
    """Converts raw arguments for `call`: to a struct, or to a dict for a function that takes all arguments at once."""
    input_schema: Schema
    check: SchemaCheck | None
    """The check against a handwritten schema, before decoding."""
    output: Output | None
    headers: tuple[ParamHeader, ...]
    context_parameter: str | None
    context_type: type | None
    """The class in `contexts` that the context parameter is annotated with."""
    dependencies: Mapping[str, Dependency]
    """Dependencies by parameter."""
    is_async: bool
    """Whether calling returns an awaitable."""
    is_generator: bool
    """Whether calling returns an iterator, asynchronous if `is_async` is true."""
    call: Callable[..., Any]
    code: CodeType | None
    """The code of the function."""
    untyped: tuple[str, ...] = ()
    """Parameters without an annotation. Clients see only their names."""
    coerce: bool = False
    """Whether arguments are accepted in other forms. See `plan`."""


def plan(
    function: Function,
    *,
    kind: Kind = "tool",
    contexts: tuple[type, ...] = (),
    name: str | None = None,
    input_schema: Schema | None = None,
    output_schema: Schema | UnsetType | None = UNSET,
    coerce: bool = False,
) -> Plan:
    """Return the plan of a function.

    Args:
        function: Any callable with a signature.
        kind: The kind of item. Arguments of prompts and resources arrive as text.
        contexts: Classes that mark the context parameter.
        name: A name for messages instead of the function's.
        input_schema, output_schema: Handwritten schemas, listed unchanged. Arguments and results are validated. Without
            an output schema (None), results aren't described.
        coerce: Accept ``"3"`` as 3, 3 as text, and JSON strings as lists or objects, ignore unknown arguments, and
            take null and ``""`` as "not given" for arguments with a default.

    Raises:
        TypeError: The signature isn't supported. The text shows the parameter and a replacement.
        ValueError: A schema is invalid, or the name is empty.
        ImportError: A handwritten schema needs an extra that isn't installed.
    """
    check_function(function, kind)
    target = unwrap_function(function)
    if name is not None and not name.strip():
        raise ValueError(f"{name_of(function)}: the name of this {kind} is empty.")
    name = name or name_of(function)
    if name == "<lambda>":
        where = f"{target.__code__.co_filename}, line {target.__code__.co_firstlineno}"
        raise TypeError(
            f"the lambda in {where} has no name that clients could call. Give it one, as in name='my_{kind}'."
        )
    text, descriptions = describe(_find_docstring_holder(function, target))
    hints = _close_hints(target, hints_of(target))
    signature = unpack_keywords(_signature_of(function), hints)
    context, context_type = context_in(signature, hints, contexts, name)
    filled = dependencies_in(signature, hints)
    values = [each for each in signature.parameters.values() if each.name != context and each.name not in filled]
    _check_accidental(values, hints, name, input_schema)
    parameters = [parameter_of(parameter, hints, descriptions, kind, name) for parameter in values]
    _check_docstring(descriptions.keys() - {each.wire for each in parameters}, (signature, target), name, input_schema)

    either, returns = (function, target), hints.get("return", Any)
    is_async_generator = any(map(inspect.isasyncgenfunction, either))
    is_async = is_async_generator or any(map(inspect.iscoroutinefunction, either))
    is_generator = is_async_generator or inspect.isgeneratorfunction(target)
    if not is_generator and (get_origin(returns) or returns) in ITERATORS:
        function = _with_result(function, _list_iterator, is_async=is_async)
    if is_generator:
        _check_yields(returns, name)
        returns = (*get_args(returns), Any)[0]
    check = None
    whole = closed = False
    if input_schema is not None:
        with _about(f"{name}: input_schema"):
            check = SchemaCheck(input_schema, whole="the arguments")
        properties = input_schema.get("properties", {})
        whole = [value.name for value in values] == ["arguments"] and "arguments" not in properties
        # Use a schema with only the parameters' properties.
        closed = input_schema.get("additionalProperties") is False and properties.keys() <= {
            each.wire for each in parameters
        }
        parameters = [] if whole else parameters
    with _about(f"{name}: output_schema"):
        by_hand = output_from_schema(output_schema) if isinstance(output_schema, dict) else None
    if output_schema is not UNSET or kind != "tool" or returns in _WITHOUT_OUTPUT or may_be_content(returns):
        returns = None
    arguments = ArgumentList(name, parameters, closed if check else kind == "tool" and not coerce, MAX_VALUES)
    code = getattr(target, "__code__", None)
    engine = _engine(arguments, returns, code)
    if engine.write is not None:
        function = (_with_items if is_generator else _with_result)(function, engine.write, is_async=is_async)
    if input_schema is not None and not whole:
        check_described(engine.input_schema.get("required", []), input_schema, name)
    schema = input_schema if input_schema is not None else engine.input_schema
    if kind != "tool":
        check_text_arguments(schema, kind, name)
    return Plan(
        name=name,
        kind=kind,
        description=text,
        engine=engine,
        decode=decode_object if whole else engine.decode,
        input_schema=schema,
        check=check,
        output=by_hand or engine.output,
        headers=find_annotations(schema) if kind == "tool" else (),
        context_parameter=context,
        context_type=context_type,
        is_async=is_async,
        is_generator=is_generator,
        dependencies=filled,
        call=_caller(function, signature, context, filled=bool(filled), whole=whole),
        code=code,
        untyped=tuple(each.name for each in values if each.name not in hints) if check is None else (),
        coerce=coerce,
    )


@contextmanager
def _about(what: str) -> Generator[None, None, None]:
    """Add the subject to errors raised inside."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{what}: {error}.") from error


# The function


def _find_docstring_holder(function: Function, target: Function) -> Any:
    """Return the object with the docstring: for a callable object without one on ``__call__``, the class."""
    inner: object = inspect.unwrap(function)
    kind = type(inner)
    own = target.__doc__ or inspect.isroutine(inner) or inspect.isclass(inner)
    is_signature = str(kind.__doc__).startswith(f"{kind.__name__}(")  # the docstring that dataclasses generate
    return target if own or is_signature else kind


def _close_hints(target: Any, hints: dict[str, Any]) -> dict[str, Any]:
    """Return annotations with recursive aliases closed, which `typing` leaves open after some levels."""
    open_hints = [name for name, hint in hints.items() if refers_to_names(hint)]
    if not open_hints:
        return hints
    function = target.__init__ if inspect.isclass(target) else target
    with suppress(NameError, AttributeError, SyntaxError):
        closed = {name: close_alias(function.__annotations__[name], function.__globals__) for name in open_hints}
        return {**hints, **closed}
    return hints


def _signature_of(function: Function) -> inspect.Signature:
    """Return the parameters of a function. A partial has only unfilled ones, even if it looks like its function
    (`functools.update_wrapper`), and a method lacks `self`, even if it's decorated.
    """
    inner = inspect.unwrap(function, stop=lambda each: isinstance(each, functools.partial | MethodType))
    try:
        return inspect.signature(inner, follow_wrapped=not isinstance(inner, functools.partial))
    except ValueError:
        raise TypeError(
            f"{name_of(function)}: its parameters are unknown. Register a function that calls it."
        ) from None


def _check_docstring(
    described: AbstractSet[str], about: tuple[inspect.Signature, Function], name: str, by_hand: Schema | None
) -> None:
    """Warn the author about descriptions that clients don't see, because no parameter has the name."""
    known = {**_signature_of(about[1]).parameters, **about[0].parameters}
    unknown = sorted(described - known.keys())
    if unknown and by_hand is None and all(each.kind is not each.VAR_KEYWORD for each in known.values()):
        warn_author(
            f"{name}: clients don't see what the docstring says about {', '.join(map(repr, unknown))}, because the "
            "function has no such parameter"
        )


def _check_accidental(
    values: list[inspect.Parameter], hints: dict[str, Any], name: str, by_hand: Schema | None
) -> None:
    """Reject parameters that would become client arguments by mistake.

    Raises:
        TypeError: A parameter is `self`, or a context that isn't annotated.
    """
    described = (by_hand or {}).get("properties", {})
    for value in values:
        if value.name in hints or value.name in described:
            continue
        if value.name in ("self", "cls") and value is values[0]:
            raise TypeError(
                f"{name}: clients would have to send {value.name!r} as an argument. Register a method of an "
                f"object, as in mcp.tool(shop.{name}), or a function."
            )
        if value.name == "ctx":
            raise TypeError(
                f"{name}: 'ctx' has no annotation, so clients would have to send it as an argument. Write ctx: "
                "Context, or ctx: SyncContext in a `def` function."
            )


# Arguments and results


_WITHOUT_OUTPUT = (Any, object, None, NoReturn, Never)
"""Return annotations that have no output schema."""


def _check_yields(annotation: Any, name: str) -> None:
    """Reject a generator annotated with a list, for example. Its result is the last value that it yields.

    Raises:
        TypeError: The annotation isn't an iterator.
    """
    promised = get_origin(annotation) or annotation
    if annotation in _WITHOUT_OUTPUT or not isinstance(promised, type):
        return
    if not issubclass(Generator, promised) and not issubclass(AsyncGenerator, promised):
        raise TypeError(
            f"{name} is a generator: every value it yields is progress, and the last one is its result. "
            "Annotate the type of the values, as in -> Iterator[str] (AsyncIterator in `async def`), or return "
            "a collection instead."
        )


def _engine(arguments: ArgumentList, returns: Any, code: CodeType | None) -> Engine:
    name = arguments.function
    try:
        if isinstance(returns, str):
            raise OutputError(f"the annotation {returns!r} can't be resolved")
        try:
            promised = None if returns is None else normalize(returns)
            for kind, each in () if promised is None else attributes_in(promised):
                if each.name.startswith("_"):
                    raise OutputError(f"msgspec doesn't write the private {each.name} of {kind.__name__}")
        except RegistrationError as error:
            raise RegistrationError(f"{name}: invalid return type: {error}.") from error
        return engine_of(arguments, promised)
    except (OutputError, RecursionError) as error:
        warn_author(
            f"{name}: the tool has no output schema, because its return type can't be described to clients: "
            f"{drop_modules(str(error)).partition(' - type')[0]}. Return a dataclass, TypedDict, Struct, "
            "pydantic model, or builtins, or annotate -> Any",
            code,
        )
        return engine_of(arguments)


def _caller(
    function: Function, signature: inspect.Signature, context: str | None, *, filled: bool, whole: bool
) -> Invoker:
    """Return the most direct closure that calls `function` with decoded arguments and the context.

    Args:
        context: The parameter that takes the context.
        filled: Whether it has dependencies.
        whole: Whether it takes all arguments as one dict.
    """
    names = list(signature.parameters)
    if any(each.default is UNSET for each in signature.parameters.values()):
        function = _without_unset(function)
    keyword_only = [name for name in names if signature.parameters[name].kind is inspect.Parameter.KEYWORD_ONLY]
    if filled or keyword_only or whole:
        positional = [name for name in names if name not in keyword_only]
        read: Callable[[Any, str], Any] = (lambda arguments, _: arguments) if whole else getattr

        def call_by_name(arguments: Any, ctx: Any, filled_values: Mapping[str, Any] = {}) -> Any:
            values = dict(filled_values)
            if context is not None:
                values[context] = ctx
            listed = [values[name] if name in values else read(arguments, name) for name in positional]
            named = {name: values[name] if name in values else read(arguments, name) for name in keyword_only}
            return function(*listed, **named)

        return call_by_name
    if context is None:
        return lambda arguments, _: function(*astuple(arguments))
    at = names.index(context)

    def call(arguments: Any, ctx: Any) -> Any:
        values = astuple(arguments)
        return function(*values[:at], ctx, *values[at:])

    return call


def _list_iterator(value: Any) -> Any:
    items: Any = value
    return list(items) if isinstance(value, Iterator) else value


def _with_result(function: Function, read: Callable[[Any], Any], *, is_async: bool) -> Function:
    """Return a function that changes the result of a function, in the same thread."""

    async def call_async(*listed: Any, **named: Any) -> Any:
        return read(await function(*listed, **named))

    return call_async if is_async else lambda *listed, **named: read(function(*listed, **named))


def _with_items(function: Function, read: Callable[[Any], Any], *, is_async: bool) -> Function:
    """Return a generator function that changes each value of a generator function."""

    async def call_async(*listed: Any, **named: Any) -> AsyncGenerator[Any, None]:
        async with aclosing(function(*listed, **named)) as values:
            async for value in values:
                yield read(value)

    return call_async if is_async else lambda *listed, **named: map(read, function(*listed, **named))


def _without_unset(function: Function) -> Function:
    return lambda *listed, **named: function(*listed, **{key: each for key, each in named.items() if each is not UNSET})


class ArgumentError(ValueError):
    """Invalid arguments. The text is for a model: ``raise ArgumentError("'isbn' must have 13 digits.")``"""


def read_texts(plan: Plan, values: Json) -> Any:
    """Return the arguments of a prompt or resource from their strings: ``"3"`` becomes an int if the parameter is one.

    For a parameter with a default that isn't text, ``""`` means "not given".

    Raises:
        ArgumentError: A string isn't valid for its parameter.
    """
    read = convert_texts(plan.engine.input_schema, values)
    try:
        return plan.engine.convert(read)
    except msgspec.ValidationError as error:
        # Forms send "" for an empty field.
        rest = {name: each for name, each in values.items() if not _is_omitted(plan.input_schema, name, each)}
        if len(rest) < len(values):
            return read_texts(plan, rest)
        few = len(values) <= MAX_LISTED
        problems = plan.engine.problems(error, read) if few else [engine_problem(error)]
        raise _refusal(plan, problems) from error


def _refusal(plan: Plan, problems: list[Problem]) -> ArgumentError:
    """Return the error for a model: ``Invalid arguments for tool 'add': 'a' must be an integer, got a string. …``."""
    return ArgumentError(f"Invalid arguments for {plan.kind} {plan.name!r}: {explain(problems, plan.input_schema)}")


def read_arguments(plan: Plan, raw: bytes) -> Any:
    """Return arguments from JSON, validated against a handwritten schema if there is one.

    If the decoder rejects them, it tries again with ``2.0`` read as the integer 2, as JSON Schema does.

    Raises:
        ArgumentError: The arguments are invalid. The message explains what to fix.
    """
    if plan.check is not None:
        read_checked(raw, f"{plan.kind} {plan.name!r}", plan.input_schema, plan.check)
    try:
        return plan.decode(raw)
    except (msgspec.DecodeError, RecursionError, TypeError) as error:
        if len(raw) <= MAX_WALKED:
            return _read_again(plan, raw, error)
        if isinstance(error, TypeError):
            raise
        raise _refusal(plan, [engine_problem(error)]) from error


def _read_again(plan: Plan, raw: bytes, error: Exception) -> Any:
    """Return rejected arguments with ``2.0`` read as the integer 2, and coerced if the tool's `coerce` is set.

    Raises:
        ArgumentError: They're still invalid.
        TypeError: One of the function's types raised it. If it's about an array or object in a set, it's explained.
    """
    problems: list[Problem] = []
    may_fit = plan.coerce or type(plan.engine) is not MsgspecEngine or "`float`" in str(error)
    cause = error
    with suppress(msgspec.DecodeError, RecursionError):
        values = (decode_integral if may_fit else msgspec.json.decode)(raw)
        try:
            if plan.coerce:
                values = convert_texts(plan.input_schema, values, coerce=True)
                values = convert_texts(plan.engine.input_schema, values)  # the other one can be by hand
            if may_fit:
                return plan.engine.convert(values)
        except msgspec.DecodeError as other:
            cause = other
        except (AttributeError, TypeError):
            pass  # the arguments aren't an object, or have an array or object in a set
        if isinstance(error, TypeError):
            problems = find_problems(plan.engine.input_schema, values)
        else:
            problems = plan.engine.problems(cause, values)
    if isinstance(error, TypeError) and not problems:
        raise error
    raise _refusal(plan, problems or [engine_problem(error)]) from error


def read_checked(raw: bytes, item: str, schema: Schema, check: SchemaCheck) -> Any:
    """Return arguments as JSON values, validated against a handwritten schema.

    Raises:
        ArgumentError: The arguments are invalid. The message explains what to fix.
    """
    if len(raw) > MAX_WALKED and too_many_values(raw, MAX_VALUES):
        raise ArgumentError(f"Invalid arguments for {item}: at most {MAX_VALUES:,} values are allowed per call")
    try:
        value = msgspec.json.decode(raw)
    except (msgspec.DecodeError, RecursionError) as error:
        raise ArgumentError(
            f"Invalid arguments for {item}: they can't be decoded: {shorten(str(error))}. {expected_text(schema)}"
        ) from error
    if not check.fits(value):
        why = f"{check.reasons(value, len(raw))}. {expected_text(schema)}"
        raise ArgumentError(f"Invalid arguments for {item}: {why}")
    return value


def _is_omitted(schema: Schema, name: str, value: Any) -> bool:
    """Return whether null or ``""`` can only mean "not given", because an optional member doesn't allow such a
    value."""
    if (value is not None and value != "") or name in schema.get("required", ()):
        return False
    node = schema.get("properties", {}).get(name, {})
    return any(find_problems({"properties": {name: node}}, {name: value}))


def convert_texts(schema: Schema, value: Any, node: Any = None, *, coerce: bool = False) -> Any:
    """Return a value in which text is what the schema requires: ``"3"`` is 3 for an integer, at any depth.

    Args:
        schema: The whole schema.
        value: A JSON value.
        node: The part of the schema for the value.
        coerce: Accept values in other forms, too. See `plan`.

    Raises:
        msgspec.DecodeError: A string looks like JSON but isn't.
    """
    node = members(schema if node is None else node)
    if node.get("$ref", "").startswith(REF):
        node = value_at_pointer(schema, node["$ref"])
    convert = functools.partial(convert_texts, schema, coerce=coerce)
    if is_object(value):
        inner = _part_of(node, "object")
        properties, others = inner.get("properties", {}), members(inner.get("additionalProperties"))
        if coerce:
            decode_json_texts(inner, value)
            value = {name: each for name, each in value.items() if not _is_omitted(inner, name, each)}
        return {name: convert(each, properties.get(name, others)) for name, each in value.items()}
    if is_array(value):
        items = _part_of(node, "array").get("items", {})
        return [convert(each, items) for each in value]
    kinds = _types_of(node)
    if coerce and isinstance(value, int | float) and not isinstance(value, bool) and kinds <= {"string", "null"}:
        value = str(value)
    if isinstance(value, str) and find_problems({"anyOf": [node], "$defs": schema.get("$defs", {})}, value):
        return _convert_text(node, value)
    return is_integral(value) if "number" not in kinds else value


def _convert_text(node: Schema, text: str) -> Any:
    """Return the value of the first alternative that reads a text, or else of the last that nearly does."""
    found: Any = text
    for part in _alternatives(node):
        for kind in _types_of(part) if "type" in part else map(kind_of, choices_of(part)):
            with suppress(msgspec.ValidationError, KeyError):
                value = msgspec.convert(text, SCALARS[kind], strict=False)
                if has_no_number(value):
                    continue
                if not find_problems(part, found := value):
                    return value
    return found


def _alternatives(node: Any) -> list[Schema]:
    return [members(each) for each in members(node).get("anyOf", [node])]


def _types_of(node: Any) -> set[str]:
    """Return the types that a schema allows, or a set with an empty string if they're unknown."""
    kinds = (part.get("type", "") for part in _alternatives(node))
    return {each for kind in kinds for each in (kind if is_array(kind) else [kind])}


def _part_of(node: Any, kind: str) -> Schema:
    """Return the only alternative of a schema that has a type, or an empty schema."""
    found = [part for part in _alternatives(node) if kind in _types_of(part)]
    return found[0] if len(found) == 1 else {}


def decode_json_texts(schema: Schema, values: Json) -> None:
    """Decode JSON strings in place where the schema doesn't allow text.

    Raises:
        msgspec.DecodeError: A string looks like JSON but isn't.
    """
    properties: Schema = schema.get("properties", {})
    for name, value in values.items():
        if isinstance(value, str) and value.lstrip()[:1] in ("[", "{") and not _takes_text(properties.get(name)):
            values[name] = msgspec.json.decode(value)


def _takes_text(node: Any) -> bool:
    return any("$ref" not in part and _types_of(part) & {"", "string"} for part in _alternatives(node))
