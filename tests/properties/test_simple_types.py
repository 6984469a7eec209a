"""msgspec reads and writes simple types exactly as pydantic does, whatever a client sends or a function returns."""

import json
import random
from collections.abc import Callable, Mapping
from functools import partial
from typing import Annotated, Any

import msgspec
import pytest

from millstream import Field
from plans import (
    ArgumentError,
    LocalError,
    MsgspecEngine,
    Output,
    Plan,
    encode_result,
    engine,
    plan,
    read_arguments,
)
from property_settings import NIGHTLY

pytestmark = pytest.mark.many
TEXTS_PER_FUNCTION = 30
FUNCTIONS = 2_000 if NIGHTLY else 170
BOUNDS: list[Any] = [
    *(Annotated[int, Field(ge=1)], Annotated[int, Field(gt=0, lt=5)], Annotated[int, Field(multiple_of=5)]),
    *(Annotated[float, Field(ge=0, le=0.5)], Annotated[float, Field(gt=-1)]),
    *(Annotated[str, Field(min_length=2)], Annotated[str, Field(min_length=1, max_length=5)]),
    Annotated[list[int], Field(min_length=1, max_length=2)],
]
WORDS = ["", "a", "abc", "Grüße", "你好", "\0", "😀", "1", "true", "null", "a" * 70, "é" * 3, 'q"\\/\n', "\u2028"]
NUMBERS = [0, 1, -1, 7, 2**31, 2**53, -(2**63), 2**63, 2**64, 10**30, 0.0, -0.0, 1.5, 1e22, 1e-7, 5e-324, 0.1, 1.7e308]
ODD = r"""
    1.0 1e2 1E400 -0 -0.0 1e-400 01 +1 .5 1. NaN Infinity -Infinity "\ud800" "\ud83d\ude00" "\u0000" 'a' [1,] {} []
    [[]] [{"a":1}] {"a":[1]} null true "1" "true" "" 18446744073709551616 9007199254740993 9007199254740993.0 {"":""}
    2e308 123456789012345678901234567890.0 {"a":1,"a":2} {"1":1} 1.5 [1.0,2] [true] [null] ["a",1] 0.1e1
    100000000000000000000.0 1e308 nul "a 1_000 0x1 - --1
""".split()  # noqa: SIM905  readable
ODD += ["1" + "0" * 400, '"\x01"', '"\t"', "true ", "", "\ufeff1", "[" * 40 + "]" * 40, "1 2"]
# Without numbers as keys, which msgspec writes as text, and pydantic refuses for `dict[str, …]`.
RETURNED: list[Any] = [
    *(1, "1", 1.0, True, None, [1], ["a"], (1, 2), {1}, {"a": 1}, float("nan"), float("inf")),
    *([float("nan")], 2**200, b"a", [True], [1.5], {"a": None}, "x", [[1]], -0.0),
]


def make_annotation(source: random.Random) -> Any:
    made = source.choice([str, int, float, bool, Any, *BOUNDS])
    for _ in range(source.choice([0, 0, 1, 1, 2])):
        made = source.choice([list[made], dict[str, made], made | None if made is not Any else made])
    return Annotated[made, "What it is"] if source.random() < 0.3 else made


def make_value(source: random.Random, depth: int = 0) -> Any:
    kind = source.randrange(4 if depth < 3 else 2)
    if kind > 1:
        inner = [make_value(source, depth + 1) for _ in range(source.randrange(3))]
        return inner if kind == 2 else {source.choice(WORDS): each for each in inner}
    return source.choice([*WORDS, *NUMBERS, True, None])


def make_text(source: random.Random, names: list[str]) -> bytes:
    values = {name: json.dumps(make_value(source), ensure_ascii=source.random() < 0.5) for name in names}
    if source.random() < 0.5:
        values[source.choice(names)] = source.choice(ODD)
    if source.random() < 0.05:
        values["other"] = "1"
    if source.random() < 0.05:
        values.popitem()
    body = source.choice(["{%s}", "{ %s }\n"]) % ",".join(f'"{name}":{value}' for name, value in values.items())
    return body.encode("utf-8", "surrogatepass").replace(b"a", b"\xff" if source.random() < 0.02 else b"a", 1)


def is_json(raw: bytes, kind: Any) -> bool:
    try:
        msgspec.json.decode(raw, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return False
    return True


def both(make: Callable[[], Plan], monkeypatch: pytest.MonkeyPatch) -> list[Plan]:
    """Return a plan as it's made, and with pydantic for simple types, too."""
    made = make()
    assert type(made.engine) is MsgspecEngine
    with monkeypatch.context() as patched:
        patched.setattr(engine, "is_simple", lambda annotation: False)
        return [made, make()]


def without_null_defaults(schema: Any) -> Any:
    """Return a schema to compare: each engine lists a default of null, or doesn't."""
    if isinstance(schema, list):
        return [*map(without_null_defaults, schema)]
    if not isinstance(schema, Mapping):
        return schema
    return {key: without_null_defaults(each) for key, each in schema.items() if (key, each) != ("default", None)}


def attempt(action: Callable[[], Any]) -> Any:
    """Return a value, or that it's refused."""
    try:
        return action()
    except (ArgumentError, LocalError, TypeError, UnicodeDecodeError):
        return "refused"


def write(value: Any, output: Output) -> Any:
    return json.loads(b"{%b}" % encode_result(value, output), parse_int=float)["structuredContent"]


def test_simple_types_are_read_and_written_as_pydantic_does(monkeypatch: pytest.MonkeyPatch) -> None:
    source = random.Random(None if NIGHTLY else 7)
    for _ in range(FUNCTIONS):
        parameters = {f"p{index}": make_annotation(source) for index in range(source.choice([1, 1, 2, 3]))}
        returns = make_annotation(source)

        def make(parameters: dict[str, Any] = parameters, returns: Any = returns) -> Plan:
            scope: dict[str, Any] = {}
            exec(f"def tool({', '.join(parameters)}): ...", scope)  # noqa: S102  our own names
            scope["tool"].__annotations__ = {**parameters, "return": returns}
            return plan(scope["tool"])

        plans = both(make, monkeypatch)
        one, other = (without_null_defaults(each.input_schema) for each in plans)
        assert one == other, parameters
        for _ in range(TEXTS_PER_FUNCTION):
            raw = make_text(source, [*parameters])
            # Transports refuse what isn't JSON. In `Any`, pydantic reads numbers out of range as infinite.
            if not is_json(raw, Any if "Any" in repr(parameters) else msgspec.Raw):
                continue
            one, other = (repr(attempt(partial(read_arguments, made, raw))).partition("(")[2] for made in plans)
            assert one == other, (parameters, raw)
        outputs = [made.output for made in plans]
        assert [each is None for each in outputs] in ([True] * 2, [False] * 2), returns
        if outputs[0] is None or outputs[1] is None:
            continue
        assert outputs[0].schema == outputs[1].schema, returns
        for _ in range(TEXTS_PER_FUNCTION // 2):
            value = make_value(source) if source.random() < 0.4 else source.choice(RETURNED)
            one, other = (attempt(partial(write, value, out)) for out in outputs)
            assert one == other, (returns, value)
