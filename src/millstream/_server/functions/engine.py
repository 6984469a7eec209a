"""The type engine of a function, which reads its arguments and encodes its result.

It's msgspec if msgspec supports every type, and pydantic otherwise.

`SchemaCheck` validates against a handwritten schema. `jsonschema-rs` decides in time that grows with the value and not
with the number of paths through the schema. Its list of errors has no such bound, so `problems` finds the reasons.
Nothing is fetched. The library is an extra, loaded when such a schema is registered (docs/decisions/0008).
"""

from collections.abc import Callable
from functools import partial
from importlib import import_module
from itertools import islice
from typing import Any, Literal, Protocol

import msgspec
from msgspec import Struct

from millstream._protocol.errors import MissingExtra
from millstream._protocol.json_schema import Schema, check_schema
from millstream._server.functions.msgspec_engine import MsgspecEngine, Output, OutputError
from millstream._server.functions.parameters import Parameter, ParameterError, needs_pydantic, normalize
from millstream._server.functions.problems import (
    MAX_LISTED,
    MAX_WALKED,
    Matches,
    Problem,
    find_problems,
    place,
    problem_text,
)

_MORE_WORKS = " (with pydantic, more types work: pip install 'millstream[pydantic]')"


class Engine(Protocol):
    """Reads the arguments of one function and encodes its results."""

    input_schema: Schema
    """The schema of the arguments, an object."""
    struct: type[Struct]
    """The class of decoded arguments, with a member per parameter, in order."""
    typed: type[Struct] | None
    """The `struct`, if a plain msgspec decoder of it is equivalent to `decode`."""
    slow: Literal["check", "build", ""]
    """Why large arguments are slow: values are validated in Python or pydantic, or slow to build."""
    output: Output | None
    """The output schema and encoder, if the result is structured."""

    @property
    def decode(self) -> Callable[[Any], Any]:
        """Return a decoder from JSON arguments to `struct`. It raises msgspec.DecodeError."""
        ...

    def convert(self, values: dict[str, Any], *, lax: bool = False) -> Any:
        """Return a `struct` from JSON values.

        Args:
            values: Values by their names for clients.
            lax: Accept ``"3"`` as 3.

        Raises:
            msgspec.ValidationError: The values don't match the types.
        """
        ...

    def problems(self, error: Exception, values: Any, *, lax: bool = False) -> list[Problem]:
        """Return the problems of JSON values, at least one.

        Args:
            error: The error of `decode` or `convert`.
            values: The refused values.
            lax: As for `convert`.
        """
        ...


def engine_of(name: str, parameters: list[Parameter], *, returns: Any = None, forbid_unknown: bool = False) -> Engine:
    """Choose and build the engine of a function.

    Args:
        name: The function's name, for messages.
        parameters: The parameters that clients fill in.
        returns: The result type, if the result is structured.
        forbid_unknown: Refuse unknown arguments.

    Raises:
        ParameterError: Neither engine supports a parameter. The text names it.
        OutputError: Neither engine can describe the result.
    """
    options: dict[str, Any] = {"returns": returns, "forbid_unknown": forbid_unknown}
    failed: ParameterError | OutputError | None = None
    if not any(map(needs_pydantic, (*(each.annotation for each in parameters), returns))):
        try:
            return MsgspecEngine(name, parameters, **options)
        except (ParameterError, OutputError) as error:
            failed = error
    try:
        module = import_module("millstream._server.functions.pydantic_engine")
    except ImportError:
        assert failed is not None  # noqa: S101  types of pydantic come with pydantic
        raise type(failed)(f"{failed}{_MORE_WORKS}") from failed
    try:
        made: Engine = module.PydanticEngine(name, parameters, **options)
    except (ParameterError, OutputError) as error:
        if failed is None or type(failed) is not type(error):
            raise
        raise failed from error
    return made


VALUE = "value"


def engine_of_type(annotation: Any) -> Engine:
    """Return the engine of one type, as a function with one parameter, `VALUE`.

    Raises:
        TypeError: Neither engine supports the type.
    """
    return engine_of("value", [Parameter(VALUE, VALUE, normalize(annotation), msgspec.NODEFAULT)])


def read_value(engine: Engine, raw: bytes) -> Any:
    """Return one JSON value of the type of `engine_of_type`.

    Raises:
        ValueError: It's a value of another type. The text names each problem and its place.
    """
    msgspec.json.decode(raw, type=msgspec.Raw)  # it must be one value
    wrapped = b'{"%b":%b}' % (VALUE.encode(), raw)
    try:
        return getattr(engine.decode(wrapped), VALUE)
    except msgspec.ValidationError as error:
        problems = engine.problems(error, msgspec.json.decode(wrapped))
        raise ValueError("; ".join(f"{place(each.path[1:])} {each.text}".strip() for each in problems)) from error


def decoder_of(annotation: Any) -> Callable[[bytes], Any]:
    """Return a decoder of one JSON value, which raises ValueError for a value of another type.

    Raises:
        TypeError: Neither engine supports the type.
    """
    return partial(read_value, engine_of_type(annotation))


MAX_BACKTRACKS = 10_000
"""Maximum steps of a `pattern` with lookaround or backreferences on one string. All other patterns take linear time."""
MAX_REASONS = 3


class SchemaCheck:
    """A compiled schema.

    Raises:
        ValueError: The schema is invalid. The text says what is wrong and where.
        ImportError: The library isn't installed.
    """

    def __init__(self, schema: Schema, *, whole: str, object_root: bool = True) -> None:
        check_schema(schema, object_root=object_root)
        try:
            import jsonschema_rs  # noqa: PLC0415  an extra
        except ImportError:
            raise MissingExtra("Validating arguments against a handwritten schema", "schema") from None
        patterns = jsonschema_rs.FancyRegexOptions(backtrack_limit=MAX_BACKTRACKS)
        compiled: Callable[[Schema], Any] = lambda each: jsonschema_rs.Draft202012Validator(  # noqa: E731
            each, offline=True, pattern_options=patterns
        )
        try:
            validator = compiled(schema)
        except jsonschema_rs.ValidationError as error:
            raise ValueError(f"#{''.join(f'/{each}' for each in error.instance_path)}: {error.message}") from error
        self.fits: Callable[[Any], bool] = validator.is_valid
        """Returns whether a JSON value is valid."""
        self._matches: Matches = lambda pattern, text: compiled({"pattern": pattern}).is_valid(text)
        self._schema = schema
        self._whole = whole
        """The name of the value as a whole."""

    def reasons(self, value: Any, size: int) -> str:
        """Return what to fix in an invalid value: ``'a.b' must be an integer, got a string; missing 'c'``.

        Args:
            value: The JSON value.
            size: The size of its JSON in bytes. Large values aren't examined.
        """
        found = (
            list(islice(find_problems(self._schema, value, matches=self._matches), MAX_LISTED))
            if size <= MAX_WALKED
            else []
        )
        if not found:
            return f"{self._whole} must match the schema"
        return problem_text(found, whole=self._whole, most=MAX_REASONS)
