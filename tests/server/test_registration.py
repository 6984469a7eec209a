import gc
import logging
import re
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, TypedDict

import pydantic
import pytest
from pydantic.json_schema import SkipJsonSchema
from typing_extensions import Unpack

from cases import for_each
from millstream import Annotations, Server, Settings, SyncContext


@pytest.fixture
def mcp() -> Server:
    return Server("shop", settings=Settings())


def nothing() -> str:
    """Do nothing."""
    return ""


REGISTER: dict[str, Callable[[Server, dict[str, Any]], Any]] = {
    "tool": lambda mcp, options: mcp.tool(**options)(nothing),
    "prompt": lambda mcp, options: mcp.prompt(**options)(nothing),
    "resource": lambda mcp, options: mcp.resource("shop://one", **options)(nothing),
}


@for_each(
    ("kind", "option"),
    [("tool", "timout"), ("tool", "read_only"), ("resource", "mimetype"), ("prompt", "titel"), ("prompt", "timeout")],
)
def test_misspelled_decorator_options_raise_type_error(mcp: Server, kind: str, option: str) -> None:
    with pytest.raises(TypeError, match=f"nothing: there is no option '{option}'"):
        REGISTER[kind](mcp, {option: 3})
    assert not mcp.registry.tools
    assert not mcp.registry.prompts


@for_each("kind", REGISTER)
def test_names_can_be_registered_again_only_after_removal(mcp: Server, kind: str) -> None:
    REGISTER[kind](mcp, {})
    with pytest.raises(ValueError, match=f"The {kind} '.*' already"):
        REGISTER[kind](mcp, {})
    getattr(mcp, f"remove_{kind}")("shop://one" if kind == "resource" else "nothing")
    REGISTER[kind](mcp, {})


@for_each("kind", REGISTER)
@for_each("name", ["", " "])
def test_empty_names_are_rejected(mcp: Server, kind: str, name: str) -> None:
    with pytest.raises(ValueError, match=f"nothing: the name of this {kind} is empty"):
        REGISTER[kind](mcp, {"name": name})


@for_each("uri", ["nocolon", "", "/books/1", "1book://x", ":x", "books/{isbn}"])
def test_uris_without_a_scheme_are_rejected(mcp: Server, uri: str) -> None:
    """RFC 3986 §3."""

    def read(isbn: str) -> str:
        return isbn

    with pytest.raises(ValueError, match="a URI must start with a scheme, as in 'shop://"):
        mcp.resource(uri)(read if "{" in uri else nothing)


def test_templates_may_begin_with_a_variable(mcp: Server) -> None:
    """RFC 6570."""

    def read(address: str) -> str:
        return address

    mcp.resource("{+address}")(read)


@pytest.mark.parametrize("reference", ["revue", "book://{isbn}"])
async def test_completers_without_a_target_prevent_startup(mcp: Server, reference: str) -> None:

    @mcp.complete(reference, argument="isbn")
    def complete(value: str, arguments: dict[str, str]) -> list[str]:
        return []

    @mcp.prompt
    def review(isbn: str) -> str:
        return isbn

    with pytest.raises(ValueError, match=f"{re.escape(repr(reference))}, 'isbn'.: no such prompt"):
        await mcp.start()


COMPLETED = {"prompt": "review", "template": "book://{isbn}"}


def serve_completed(mcp: Server) -> None:
    """Return a server with a prompt and a template whose arguments can be completed."""

    @mcp.prompt
    def review(isbn: str, tone: str = "dry") -> str:
        return isbn

    @mcp.resource("book://{isbn}")
    def book(isbn: str) -> str:
        return isbn


@pytest.mark.parametrize("kind", COMPLETED)
async def test_error_for_completers_of_unknown_arguments_lists_the_known_ones(mcp: Server, kind: str) -> None:
    known = {"prompt": "'isbn', 'tone'", "template": "'isbn'"}[kind]
    text = re.escape(f"complete({COMPLETED[kind]!r}, 'ibsn'): there is no such argument. Use one of {known}")
    serve_completed(mcp)
    with pytest.raises(ValueError, match=text):
        mcp.complete(COMPLETED[kind], argument="ibsn")(lambda value, arguments: [])
    assert not mcp.registry.completers

    late = Server("late", settings=Settings())
    late.complete(COMPLETED[kind], argument="ibsn")(lambda value, arguments: [])
    serve_completed(late)
    with pytest.raises(ValueError, match=text):
        await late.start()


async def test_removing_a_prompt_removes_its_completers(mcp: Server) -> None:
    @mcp.prompt
    def review(isbn: str) -> str:
        return isbn

    @mcp.complete("review", argument="isbn")
    def complete(value: str, arguments: dict[str, str]) -> list[str]:
        return []

    mcp.remove_prompt("review")
    assert not mcp.registry.completers
    async with mcp.running():
        pass


@for_each("option", ["input_schema", "output_schema"])
def test_invalid_hand_written_schemas_are_rejected_with_the_tool_name(mcp: Server, option: str) -> None:
    schema = {"type": "object", "properties": {"age": {"type": "int"}}}
    with pytest.raises(ValueError, match=f"nothing: {option}: #/properties/age/type: "):
        REGISTER["tool"](mcp, {option: schema})
    assert not mcp.registry.tools


WRONG: list[tuple[str, dict[str, Any], str]] = [
    ("tool", {"timeout": "soon"}, "nothing: timeout must be a number of seconds, or 0 for no limit, not 'soon'"),
    ("tool", {"timeout": -1}, "nothing: timeout must be a number of seconds"),
    ("tool", {"timeout": float("nan")}, "nothing: timeout must be a number of seconds"),
    ("tool", {"timeout": True}, "nothing: timeout must be a number of seconds"),
    ("tool", {"thread": "no"}, "nothing: thread must be True or False, not 'no'"),
    (
        "tool",
        {"annotations": {"readOnly": True}},
        "nothing: annotations have no 'readOnly'; did you mean 'readOnlyHint'? Use one of title, readOnlyHint,",
    ),
    ("tool", {"annotations": {"readOnlyHint": "yes"}}, "nothing: annotations: Expected `bool | null`, got `str`"),
    ("tool", {"annotations": Annotations(priority=1)}, "nothing: annotations must be ToolAnnotations or a dict"),
    ("tool", {"annotations": True}, "nothing: annotations must be an annotations object or a dict, not True"),
    ("tool", {"input_schema": "{}"}, "nothing: input_schema must be a JSON Schema as a dict, not '{}'"),
    ("tool", {"requires": ["sampling"]}, "nothing: requires must be a dict of client capabilities, each with a dict"),
    ("tool", {"requires": {"sampling": True}}, "its required settings: {'sampling': {}}, not {'sampling': True}"),
    ("tool", {"requires": {"elicitation": ["form"]}}, "requires must be a dict of client capabilities, each with a"),
    ("tool", {"title": 5}, "nothing: title must be a string, not 5"),
    ("tool", {"name": 5}, "nothing: name must be a string, not 5"),
    ("prompt", {"icons": "icon.png"}, "nothing: icons must be a list of Icon, not 'icon.png'"),
    (
        "prompt",
        {"annotations": {}},
        "nothing: there is no option 'annotations'; use one of description, enabled, groups, icons, meta,",
    ),
    (
        "resource",
        {"annotations": {"readOnlyHint": True}},
        "annotations have no 'readOnlyHint'; use one of audience, priority",
    ),
    ("resource", {"annotations": {"priority": 2}}, "nothing: annotations: Expected `float` <= 1.0"),
    (
        "resource",
        {"annotations": {"lastModified": "gestern"}},
        "lastModified must be an ISO 8601 time, YYYY-MM-DDThh:mm:ssZ, or a date, not 'gestern'",
    ),
    ("resource", {"annotations": Annotations(last_modified="")}, "lastModified must be an ISO 8601"),
    ("resource", {"annotations": {"lastModified": "2025-02-30"}}, "lastModified must be an ISO 8601"),
    ("resource", {"size": "5"}, "nothing: size must be a number of bytes, not '5'"),
    ("resource", {"mime_type": 1}, "nothing: mime_type must be a string, not 1"),
    ("resource", {"meta": {1: 2}}, "nothing: meta must be a dict with string keys"),
    (
        "resource",
        {"meta": {"a": object()}},
        "nothing: meta must be a dict with string keys and JSON-serializable",
    ),
    (
        "tool",
        {"meta": {"a": {"b": 1j}}},
        "nothing: meta must be a dict with string keys and JSON-serializable",
    ),
]


@for_each(("kind", "options", "text"), WRONG)
def test_invalid_option_values_are_rejected_with_the_valid_ones(
    mcp: Server, kind: str, options: dict[str, Any], text: str
) -> None:
    with pytest.raises(TypeError, match=re.escape(text)):
        REGISTER[kind](mcp, options)
    assert not mcp.registry.tools


def test_annotations_may_be_a_dict_with_wire_names(mcp: Server) -> None:
    mcp.tool(annotations={"readOnlyHint": True, "title": "T"}, timeout=0)(nothing)
    assert mcp.registry.tools["nothing"].describe()["annotations"] == {"readOnlyHint": True, "title": "T"}


@for_each("name", ["a,b", "has space", "ü", "my tool!", "a" * 65, "a/b", "a.b", "1st"])
def test_tool_names_that_some_clients_reject_cause_a_warning(mcp: Server, name: str) -> None:
    """Claude Desktop (evoila/meho#2745, hostinger/api-mcp-server#48) and Gemini (wonderwhy-er/DesktopCommanderMCP#79)
    allow fewer than MCP (2025-11-25, server/tools, Tool Names).
    """
    with pytest.warns(
        UserWarning, match="use 1 to 64 ASCII letters, digits, underscores, and hyphens, and begin with a letter"
    ) as caught:
        mcp.tool(name=name)(nothing)
    assert name in mcp.registry.tools
    assert caught[0].filename == __file__


@for_each("name", ["a", "_", "A_b-c_9", "a" * 64])
def test_portable_tool_names_do_not_warn(mcp: Server, name: str) -> None:
    mcp.tool(name=name)(nothing)


def test_lambdas_without_a_name_are_rejected(mcp: Server) -> None:
    with pytest.raises(TypeError, match=r"the lambda in .*test_registration\.py, line \d+ has no name that clients"):
        mcp.tool(lambda: "x")
    mcp.tool(name="named")(lambda: "x")


class Shop:
    def buy(self, book: str) -> str:
        return book


def test_unbound_methods_are_rejected(mcp: Server) -> None:
    with pytest.raises(TypeError, match=r"buy: clients would have to send 'self' as an argument.*mcp.tool\(shop.buy\)"):
        mcp.tool(Shop.buy)
    mcp.tool(Shop().buy)
    assert list(mcp.registry.tools["buy"].describe()["inputSchema"]["properties"]) == ["book"]


@for_each("kind", REGISTER)
def test_context_parameters_need_an_annotation(mcp: Server, kind: str) -> None:

    def whisper(ctx):  # type: ignore[no-untyped-def]  # the subject
        return ctx

    with pytest.raises(TypeError, match="whisper: 'ctx' has no annotation"):
        mcp.resource("shop://{ctx}")(whisper) if kind == "resource" else getattr(mcp, kind)(whisper)


def test_parameter_named_ctx_may_have_another_type(mcp: Server) -> None:
    def whisper(ctx: str) -> str:
        return ctx

    mcp.tool(whisper)


def test_registration_errors_point_to_the_decorator(mcp: Server) -> None:
    with pytest.raises(TypeError) as refused:
        mcp.tool(timeout="soon")(nothing)  # type: ignore[call-overload]  # the subject
    assert [Path(str(frame.path)).name for frame in refused.traceback] == ["test_registration.py", "server.py"]
    assert refused.value.__cause__ is None


@pytest.mark.many
def test_registration_cost_does_not_grow_with_the_number_of_tools() -> None:
    mcp = Server("crowd")
    counts: list[int] = []

    def count(*_: object) -> None:
        counts[-1] += 1

    gc.disable()  # what it would end of other tests isn't work of this one
    try:
        for number in range(300):
            counts.append(0)
            sys.setprofile(count)
            mcp.tool(lambda name: name, name=f"tool_{number}")
            sys.setprofile(None)
    finally:
        sys.setprofile(None)
        gc.enable()
    assert max(counts[200:]) <= min(counts[:100]) + 50, counts


@pytest.mark.parametrize("moment", ["2025-01-12T15:00:58Z", "2025-01-12T15:00:58.25+02:00", "2025-01-12", None])
def test_last_modified_is_listed_unchanged(mcp: Server, moment: str | None) -> None:
    mcp.resource("shop://stock", annotations=Annotations(priority=1, last_modified=moment))(nothing)
    listed = mcp.registry.resources["shop://stock"].describe()["annotations"]
    assert listed.get("lastModified") == moment


@pytest.mark.parametrize(
    ("requires", "text"),
    [
        ({"bogus": {}}, "the capability 'bogus' can call it, but MCP doesn't define that name; use one of elicitation"),
        ({"elicitaton": {}}, "'elicitaton' can call it, .*; did you mean 'elicitation'"),
        ({"elicitation": {"forms": {}}}, "'elicitation.forms' can call it, .*; did you mean 'form'"),
        ({"tools": {}}, "'tools' can call it"),
    ],
)
def test_unknown_required_capabilities_warn(mcp: Server, requires: Any, text: str) -> None:
    with pytest.warns(UserWarning, match=text) as caught:
        mcp.tool(requires=requires)(nothing)
    assert [each.filename for each in caught] == [__file__]
    assert mcp.registry.tools["nothing"].requires == requires


@pytest.mark.parametrize(
    "requires",
    [
        {"elicitation": {"url": {}}, "sampling": {"tools": {}, "context": {}}, "roots": {"listChanged": True}},
        {"extensions": {"com.example/x": {"n": 1}}, "experimental": {"own": {}}, "tasks": {"cancel": {}}},
        {},
        None,
    ],
)
def test_known_required_capabilities_do_not_warn(mcp: Server, requires: Any) -> None:
    mcp.tool(requires=requires)(nothing)


@for_each("keyword", ["additionalProperties", "unevaluatedProperties"])
def test_hand_written_schemas_must_allow_required_parameters(mcp: Server, keyword: str) -> None:

    def buy(book: str, copies: int = 1) -> str:
        return f"{copies} of {book}"

    text = (
        f"buy: input_schema doesn't allow the property 'book', because {keyword} is false, but the function "
        'requires it. Add it to "properties", or give the parameter a default.'
    )
    for properties in ({}, {"copies": {}}):
        with pytest.raises(TypeError, match=re.escape(text)):
            mcp.tool(buy, input_schema={"type": "object", "properties": properties, keyword: False})
    assert not mcp.registry.tools


@pytest.mark.parametrize(
    "schema",
    [
        {"properties": {"book": {}}},
        {},
        {"properties": {"copies": {}}},
        {"required": ["book"]},
        {"propertyNames": {"pattern": "^[a-z]+$"}},
        {"minProperties": 1},
        {"additionalProperties": {"type": "string"}},
        {"unevaluatedProperties": {"type": "string"}},
        {"patternProperties": {"^b": {}}},
        {"patternProperties": {"^b": {}}, "additionalProperties": False},
        {"anyOf": [{"properties": {"book": {}}}], "unevaluatedProperties": False},
        {"$ref": "#/$defs/a", "$defs": {"a": {"properties": {"book": {}}}}},
        {"anyOf": [{"properties": {"book": {}}}]},
    ],
)
@pytest.mark.filterwarnings("ignore:.*rejects schemas with")
def test_hand_written_schemas_may_describe_parameters_in_subschemas(mcp: Server, schema: dict[str, Any]) -> None:
    def buy(book: str, copies: int = 1) -> str:
        return f"{copies} of {book}"

    mcp.tool(buy, input_schema={"type": "object", **schema})

    def order(arguments: dict[str, Any]) -> str:
        return str(arguments)

    mcp.tool(order, input_schema={"type": "object"})


async def test_tools_without_types_or_docstring_warn(caplog: pytest.LogCaptureFixture) -> None:
    for developing, level in ((True, logging.WARNING), (False, logging.INFO)):
        mcp = Server("shop", settings=Settings(show_errors=developing))

        @mcp.tool
        def order(isbn, copies: int = 1):  # type: ignore[no-untyped-def]
            return f"{copies} of {isbn}"

        @mcp.tool(description="Return stock.")
        def remove(isbn: str) -> None: ...

        caplog.clear()
        with caplog.at_level(logging.DEBUG, "millstream"):
            async with mcp.running():
                pass
        (record,) = (each for each in caplog.records if each.message.startswith(("order:", "remove:")))
        assert record.levelno == level
        assert "clients see no type for 'isbn'" in record.message
        assert "models see no description. Write a docstring" in record.message


def test_docstring_that_describes_an_unknown_parameter_warns_the_author() -> None:
    mcp = Server("shop")
    with pytest.warns(UserWarning, match=r"order: clients don't see what the docstring says about 'copys', because"):

        @mcp.tool
        def order(isbn: str, ctx: SyncContext, copies: int = 1) -> str:
            """Order a book.

            Args:
                isbn: The book.
                ctx: The call.
                copys: How many.
            """
            return isbn

    with warnings.catch_warnings():
        warnings.simplefilter("error")

        class Options(TypedDict):
            gift: bool

        @mcp.tool
        def send(isbn: Annotated[str, pydantic.Field(alias="ISBN")], **options: Unpack[Options]) -> str:
            """Send a book.

            Args:
                ISBN: The book.
                gift: Whether to wrap it.
            """
            return isbn

        @mcp.tool(input_schema={"type": "object", "properties": {"isbn": {"type": "string"}}})
        def find(arguments: dict[str, Any]) -> str:
            """Find a book.

            Args:
                isbn: The book.
            """
            return str(arguments)


def test_parameter_without_a_schema_is_rejected() -> None:
    def tool(a: int, hidden: SkipJsonSchema[int] = 2) -> None: ...

    with pytest.raises(TypeError, match=r"tool: parameter 'hidden': its schema is hidden from clients.* with Depends"):
        Server("shop").add_tool(tool)
