"""The engine of a function: what reads its arguments and writes its result. One for each function.

msgspec, if it can express every type by itself; pydantic otherwise.
"""

from collections.abc import Callable
from importlib import import_module
from typing import Any, Literal, Protocol

import msgspec
from msgspec import Struct

from millstream._protocol.json_schema import Schema
from millstream._server.functions.annotations import needs_pydantic, normalize
from millstream._server.functions.msgspec_engine import MsgspecEngine
from millstream._server.functions.outputs import Output, OutputError
from millstream._server.functions.parameters import Parameter, ParameterError
from millstream._server.functions.problems import Problem, place

_MORE_WORKS = " (with pydantic, pip install 'millstream[pydantic]', further types work)"


class Engine(Protocol):
    """Reads the arguments of one function, and writes its results."""

    input_schema: Schema
    """Of the arguments, an object."""
    struct: type[Struct]
    """The class of decoded arguments: a member for each parameter, by its name and in its order."""
    typed: type[Struct] | None
    """`struct`, where a msgspec decoder of it does all that `decode` does."""
    slow: Literal["check", "build", ""]
    """Why large arguments take long: each value is checked in Python or by pydantic, or is slow to build."""
    output: Output | None
    """What the function promises to return, if that is structured."""

    @property
    def decode(self) -> Callable[[Any], Any]:
        """From the JSON of the arguments to `struct`, in one pass. Raises msgspec.DecodeError."""
        ...

    def convert(self, values: dict[str, Any], *, lax: bool = False) -> Any:
        """Return `struct` of JSON values.

        Args:
            values: by the names that clients use.
            lax: ``"3"`` counts as 3.

        Raises:
            msgspec.ValidationError: they don't fit.
        """
        ...

    def problems(self, error: Exception, values: Any, *, lax: bool = False) -> list[Problem]:
        """Return what is wrong with JSON values, at least one thing.

        Args:
            error: what `decode` or `convert` raised.
            values: that it refused.
            lax: as of `convert`.
        """
        ...


def engine_of(name: str, parameters: list[Parameter], *, returns: Any = None, forbid_unknown: bool = False) -> Engine:
    """Choose and build the engine of a function.

    Args:
        name: of the function, for messages.
        parameters: that clients fill in.
        returns: the type of the result, if something is promised.
        forbid_unknown: refuse arguments that no parameter has.

    Raises:
        ParameterError: neither engine can read a parameter; the text names it.
        OutputError: neither can describe the result.
    """
    options: dict[str, Any] = {"returns": returns, "forbid_unknown": forbid_unknown}
    failed: ParameterError | OutputError | None = None
    if not any(map(needs_pydantic, (*(each.annotation for each in parameters), returns))):
        try:
            return MsgspecEngine(name, parameters, **options)
        except (ParameterError, OutputError) as error:
            failed = error
    pydantic_engine = _pydantic_engine()
    if pydantic_engine is None:
        assert failed is not None  # noqa: S101  types of pydantic come with pydantic
        raise type(failed)(f"{failed}{_MORE_WORKS}") from failed
    try:
        made: Engine = pydantic_engine(name, parameters, **options)
    except (ParameterError, OutputError) as error:
        if failed is None or type(failed) is not type(error):
            raise
        raise failed from error
    return made


def _pydantic_engine() -> Any:
    """Return the class, where pydantic is installed."""
    try:
        return import_module("millstream._server.functions.pydantic_engine").PydanticEngine
    except ImportError:
        return None


VALUE = "value"


def engine_of_type(annotation: Any) -> Engine:
    """Return the engine of one type: of a function with one parameter, `VALUE`, of this type.

    Raises:
        TypeError: neither engine can read it.
    """
    return engine_of("value", [Parameter(VALUE, VALUE, normalize(annotation), msgspec.NODEFAULT)])


def decoder_of(annotation: Any) -> Callable[[bytes], Any]:
    """Return what reads the JSON of one value, and raises ValueError for one that is of another type.

    Raises:
        TypeError: neither engine can read the type.
    """
    engine = engine_of_type(annotation)

    def decode(raw: bytes) -> Any:
        msgspec.json.decode(raw, type=msgspec.Raw)  # so that it's one value
        wrapped = b'{"%b":%b}' % (VALUE.encode(), raw)
        try:
            return getattr(engine.decode(wrapped), VALUE)
        except msgspec.ValidationError as error:
            problems = engine.problems(error, msgspec.json.decode(wrapped))
            raise ValueError("; ".join(f"{place(each.path[1:])} {each.text}".strip() for each in problems)) from error

    return decode
