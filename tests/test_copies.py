"""Public errors and values survive copies and other processes. Objects of a running program refuse with advice."""

import collections.abc
import copy
import importlib
import inspect
import multiprocessing
import pickle
import pkgutil
import re
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from enum import Enum
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints, is_typeddict

import pytest
from msgspec import Raw, Struct, structs
from pydantic import BaseModel

import millstream
from millstream.agent import LanguageModel
from millstream.compat import fastmcp, types
from millstream.extensions import events
from millstream.gateway import (
    ApprovalPolicy,
    PromptPolicy,
    Secret,
    SetConfig,
    ToolPolicy,
    UpstreamConfig,
    UpstreamPolicy,
)
from millstream.items import ItemSource, Template, Tool
from millstream.protocol import NotCopyable, SuggestionMeta
from raised_errors import OutOfStock, raise_error, raise_lock, raise_own_error

SAMPLES: dict[type[Any], Callable[[], object]] = {
    LanguageModel: lambda: LanguageModel("gpt", key="text"),
    PromptPolicy: lambda: PromptPolicy(defaults={"a": "b"}),
    Secret: lambda: Secret(env="KEY"),
    ApprovalPolicy: lambda: ApprovalPolicy(by=("group:managers",), within="1h"),
    SetConfig: lambda: SetConfig(name="interns", allow=("a",), with_hints={"readOnlyHint": True}, limit="5/second"),
    Template: lambda: Template("shop://{isbn}", ItemSource("book", len, len, schema={"properties": {"isbn": {}}})),
    Tool: lambda: Tool(ItemSource("book", len, len)),
    ToolPolicy: lambda: ToolPolicy(limit="5/second"),
    UpstreamConfig: lambda: UpstreamConfig(name="shop", target="http://127.0.0.1:9/mcp"),
    UpstreamPolicy: lambda: UpstreamPolicy(tools={"a": ToolPolicy()}),
    events.Events: events.Events,
    fastmcp.AssistantMessage: lambda: fastmcp.AssistantMessage("text"),
    fastmcp.McpError: lambda: fastmcp.McpError(types.ErrorData(code=-32000, message="No.", data={"a": 1})),
    fastmcp.UserMessage: lambda: fastmcp.UserMessage("text"),
}
"""Classes whose arguments can't be guessed from their annotations."""


def public_classes() -> dict[str, type[Any]]:
    """Return the classes with instances that public modules export, by their full names."""
    found: dict[str, type[Any]] = {}
    for each in pkgutil.walk_packages(millstream.__path__, "millstream."):
        if any(part.startswith("_") for part in each.name.split(".")):
            continue
        module = importlib.import_module(each.name)
        for name in getattr(module, "__all__", ()):
            value = getattr(module, name)
            if not inspect.isclass(value) or not value.__module__.startswith("millstream"):
                continue
            is_interface = getattr(value, "_is_protocol", False) or inspect.isabstract(value) or is_typeddict(value)
            if not is_interface and value not in (NotCopyable, SuggestionMeta):
                found[f"{value.__module__}.{value.__qualname__}"] = value
    return found


class Running(NotCopyable):
    """Stands for an object of a running program."""


def sample(annotation: Any) -> Any:
    """Return a value for an annotation. Other classes' objects can't be copied, so their owner has to refuse."""
    options, origin = get_args(annotation), get_origin(annotation)
    values: dict[Any, Any] = {
        str: "text",
        bool: True,
        int: 3,
        float: 0.5,
        bytes: b"bytes",
        Raw: Raw(b"{}"),
        Any: {"a": 1},
        dict: {"a": 1},
        Mapping: {"a": 1},
        object: {"a": 1},
        collections.abc.Callable: len,
        list: [],
        tuple: (),
        set: set(),
        frozenset: frozenset(),
        collections.abc.Sequence: [],
    }
    for each in (annotation, origin):
        if isinstance(each, collections.abc.Hashable) and each in values:
            return values[each]
    if origin is Literal:
        return options[0]
    if origin in (Union, UnionType):
        found = sample(options[0])
        return None if isinstance(found, Running) and type(None) in options else found
    if inspect.isclass(annotation) and issubclass(annotation, Enum):
        return next(iter(annotation))
    if inspect.isclass(annotation) and issubclass(annotation, Struct) and not issubclass(annotation, NotCopyable):
        return create(annotation)
    return Running()


def create(kind: type[Any]) -> Any:
    """Return an instance, with a value for each argument."""
    if kind in SAMPLES:
        return SAMPLES[kind]()
    if issubclass(kind, Enum):
        return next(iter(kind))
    if issubclass(kind, BaseModel):
        return kind.model_construct()
    if issubclass(kind, Struct):
        hints = get_type_hints(kind)
        return kind(**{field.name: sample(hints[field.name]) for field in structs.fields(kind)})
    if kind.__init__ in (Exception.__init__, ValueError.__init__, OSError.__init__, TypeError.__init__):
        return kind("What happened.")
    if kind.__init__ is object.__init__:
        return kind()
    hints = get_type_hints(inspect.unwrap(kind.__init__))
    return kind(**{name: sample(hints.get(name, str)) for name in inspect.signature(kind).parameters})


def state(value: Any) -> Any:
    """Return what's equal for two objects after a copy."""
    if isinstance(value, BaseException):
        return type(value), str(value), value.args, {name: state(each) for name, each in vars(value).items()}
    if isinstance(value, Struct):
        return type(value), [state(getattr(value, name)) for name in value.__struct_fields__]
    if isinstance(value, list):
        return [state(each) for each in value]
    return value if type(value).__eq__ is not object.__eq__ else type(value)


def survivors() -> dict[str, Any]:
    """Return an instance of each class that doesn't refuse copies."""
    return {name: create(kind) for name, kind in public_classes().items() if not issubclass(kind, NotCopyable)}


COPIES: dict[str, Callable[[Any], Any]] = {
    "pickle": lambda value: pickle.loads(pickle.dumps(value)),  # noqa: S301  our own
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
}


@pytest.mark.server
def test_public_objects_survive_every_kind_of_copy_or_refuse_with_advice() -> None:
    broken = dict[str, str]()
    for name, value in survivors().items():
        for how, make in COPIES.items():
            try:
                other = make(value)
            except Exception as exc:
                broken[f"{name} ({how})"] = repr(exc)
            else:
                if state(other) != state(value):
                    broken[f"{name} ({how})"] = f"{state(other)} isn't {state(value)}"
    assert not broken
    for name, kind in public_classes().items():
        if issubclass(kind, NotCopyable):
            assert kind.__reduce_ex__ is NotCopyable.__reduce_ex__, name
            assert re.fullmatch(r"[A-Z].*\.", kind._COPY_ADVICE), name


@pytest.mark.server
def test_errors_raised_in_worker_processes_reach_their_caller() -> None:
    errors = [each for each in survivors().values() if isinstance(each, BaseException)]
    assert len(errors) > 50
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as executor, context.Pool(1) as pool:
        for error in errors:
            assert state(executor.submit(raise_error, error).exception(60)) == state(error)
            with pytest.raises(type(error)) as caught:
                pool.apply_async(raise_error, (error,)).get(60)
            assert state(caught.value) == state(error)
        for run in (lambda work: executor.submit(work).result(60), lambda work: pool.apply_async(work).get(60)):
            with pytest.raises(OutOfStock, match="Only 2 copies"):
                run(raise_own_error)
            with pytest.raises(Exception, match="pickle"):  # its attribute can't be pickled, but the pool goes on
                run(raise_lock)
            with pytest.raises(OutOfStock):
                run(raise_own_error)
