import re
import subprocess
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from cases import for_each
from http_messages import HttpRequest as PlainRequest
from http_messages import Response as Reply
from millstream import Client, Context, Server, SyncContext, ToolError
from millstream.client import BlockingClient, ServerError, TargetError, ToolFailed
from millstream.testing import connect
from patience import WAIT


def shop() -> Server:
    """Return a server made with the names of other packages."""
    mcp = Server("shop")

    async def order(copies: int, ctx: Context) -> int:
        """Order."""
        await ctx.report_progress(1, 2)
        if copies > 9:
            raise ToolError("Too many.")
        return copies

    def count(ctx: SyncContext) -> int:
        """Count."""
        ctx.report_progress(1, 2)
        return 1

    mcp.add_tool(order, title="Order copies")
    mcp.add_tool(count)
    mcp.resource("notes://all", name="notes")(lambda: "a note")
    mcp.prompt(name="advise")(lambda topic: f"About {topic}")

    @mcp.custom_route("/hello", methods=["GET"])
    async def hello(request: Request) -> Response:
        return PlainTextResponse("hello")

    return mcp


async def test_methods_from_other_packages_work() -> None:
    mcp = shop()
    assert mcp.http_app() is mcp.streamable_http_app() is mcp.sse_app() is mcp
    async with connect(mcp) as client:
        assert (await client.call_tool("order", {"copies": 2})).data == 2
        assert (await client.call_tool("count")).data == 1
        assert [each["params"]["progress"] for each in client.notifications] == [1, 1]
        assert [each.title for each in await client.list_tools()][:1] == ["Order copies"]
        assert [each.uri for each in await client.list_resources()] == ["notes://all"]
        assert await client.list_resource_templates() == []
        assert [each.name for each in await client.list_prompts()] == ["advise"]
        assert (await client.read_resource("notes://all"))[0].text == "a note"
        assert (await client.get_prompt("advise", {"topic": "tea"})).text == "About tea"
        with pytest.raises(ToolFailed, match="Too many"):
            await client.call_tool("order", {"copies": 10})
        refused = await client.call_tool("order", {"copies": 10}, raise_on_error=False)
        assert (refused.is_error, refused.text) == (True, "Too many.")


async def test_a_tool_that_fails_raises_with_its_result() -> None:
    async with Client(shop()) as client:
        with pytest.raises(ToolFailed, match="Too many") as caught:
            await client.call("order", copies=10)
        assert caught.value.result.is_error
        assert (await client.call("order", copies=10, raise_on_error=False)).text == "Too many."


async def test_unknown_names_suggest_existing_ones() -> None:
    mcp = shop()
    async with Client(mcp) as client:
        with pytest.raises(ServerError, match="did you mean 'order'"):
            await client.call("oder", copies=1)
    with pytest.raises(TypeError, match="BlockingClient"), Client(mcp):
        pass
    with BlockingClient(mcp) as blocking:
        assert blocking.call_tool("count").data == 1
    with pytest.raises(TargetError, match=r"2026-07-28"):
        Client(mcp, revision="2026-01-01")
    with pytest.raises(ValueError, match=r"did you mean '2025-06-18'"):
        async with connect(mcp, revision="2025-06-19"):
            pass
    with pytest.raises(TypeError, match="json_response"):
        mcp.http_app(json_response=True)
    with pytest.raises(RuntimeError, match="run_async"):
        mcp.run("http")
    with pytest.raises(ImportError, match=r"from millstream\.compat\.fastmcp import FastMCP"):
        from millstream import FastMCP  # type: ignore[attr-defined]  # noqa: F401, PLC0415


async def test_errors_for_unserved_paths_suggest_the_part_that_serves_them() -> None:
    async with shop().running() as runtime:
        routes = runtime.serve_http()
        for method, path, said in (
            ("POST", "/", "MCP is served at /mcp."),
            ("GET", "/inspect", "--serve web"),
            ("GET", "/docs", "--serve rest"),
            ("GET", "/events", "--serve hub"),
            ("GET", "/metrics", "--serve metrics"),
        ):
            refuse = routes.find(method, path)
            assert refuse is not None
            reply = await refuse(PlainRequest(method, path, (), {}))
            assert isinstance(reply, Reply)
            assert (reply.status, said in reply.body.decode()) == (404, True)


@pytest.mark.server
def test_program_may_have_the_name_of_the_package(tmp_path: Path) -> None:
    (tmp_path / "millstream.py").write_text(
        "from millstream import Server\nmcp = Server('x')\n@mcp.tool\ndef f() -> int:\n    '''F.'''\n    return 1\n"
    )
    start = [sys.executable, "-P", "-c", "from millstream._cli import main; main()"]
    for words, said in (["f"], "1\n"), (["notes://all"], "millstream read millstream.py notes://all"):
        done = subprocess.run(
            [*start, "call", "millstream.py", *words],
            cwd=tmp_path, capture_output=True, text=True, timeout=WAIT, check=False,
        )  # fmt: skip
        assert said in done.stdout + done.stderr


@pytest.mark.server
def test_program_with_the_name_of_an_imported_module_has_to_be_renamed(tmp_path: Path) -> None:
    for name in ("types", "json", "msgspec"):
        file = tmp_path / f"{name}.py"
        file.write_text("from millstream import Server\nmcp = Server('x')\n")
        (tmp_path / "other.py").write_text("from millstream import Server\n")
        for program in (file, tmp_path / "other.py"):
            done = subprocess.run([sys.executable, program], capture_output=True, text=True, timeout=WAIT, check=False)
            said = f"ImportError: Rename {name}.py. Python imports it in place of the module {name!r}."
            assert (done.stderr.splitlines()[-1], done.returncode) == (said, 1)
            assert "The above exception was the direct cause" in done.stderr
        start = [sys.executable, "-P", "-c", "from millstream._cli import main; main()"]
        done = subprocess.run([*start, "list", file], capture_output=True, text=True, timeout=WAIT, check=False)
        assert (f"Rename {name}.py." in done.stderr, done.returncode) == (True, 0)
        file.unlink()


async def test_missing_capability_error_suggests_the_client_option() -> None:
    mcp = Server("shop")

    @mcp.tool(requires={"elicitation": {}})
    async def order() -> int:
        """Order."""
        return 1

    async with Client(mcp) as client:
        with pytest.raises(ServerError, match=r"capability: elicitation \(-32021\)\. .*elicit=…"):
            await client.call("order")


async def test_tool_without_a_title_gets_one_from_its_name() -> None:
    mcp = Server("shop")
    for name, options in (("get_bookById", {}), ("plain", {"title": ""}), ("given", {"annotations": {"title": "G"}})):
        mcp.tool(name=name, **options)(lambda: "")  # type: ignore[call-overload]
    async with connect(mcp) as client:
        assert [each.title for each in await client.list_tools()] == ["Get book By Id", None, None]


async def test_names_from_other_packages_suggest_ours() -> None:
    mcp = shop()

    @mcp.tool
    def look(ctx: SyncContext) -> str:
        """Look."""
        with pytest.raises(AttributeError, match=r"Write `ctx\.state\[name\] = value`"):
            ctx.set_state("a", 1)  # type: ignore[attr-defined]
        return "looked"

    with pytest.raises(AttributeError, match=r"write `async with Client\(mcp\) as client: await client\.tools\(\)`"):
        mcp.list_tools()  # type: ignore[attr-defined]
    with pytest.raises(AttributeError, match=r"Write `Server\(middleware=\[…\]\)`"):
        mcp.middleware("http")  # type: ignore[attr-defined]
    with pytest.raises(AttributeError, match=r"the value it yields is `ctx\.lifespan`"):
        mcp.state.limiter = None  # type: ignore[attr-defined]
    with pytest.raises(AttributeError, match="Did you mean 'mount'") as caught:
        mcp.mont(mcp)  # type: ignore[attr-defined]
    assert "".join(traceback.format_exception(caught.value)).count("Did you mean") == 1
    async with Client(mcp) as client:
        assert (await client.call("look")).text == "looked"
        with pytest.raises(AttributeError, match="set_log_level"):
            await client.set_logging_level("info")  # type: ignore[attr-defined]
        for work, words in (
            (client.prompt("advice"), "did you mean 'advise'"),
            (client.read("notes://al"), "did you mean 'notes://all'"),
        ):
            with pytest.raises(ServerError, match=words):
                await work
    async with Client(Server("empty")) as client:
        with pytest.raises(ServerError, match="The server has no prompts, so there is no 'x'"):
            await client.prompt("x")


@pytest.mark.parametrize(
    ("keyword", "ours"),
    [("token", "auth=auth.keys"), ("api_key", "auth=auth.keys"), ("cors", "allowed_origins="), ("title", "info=Info")],
)
def test_server_keywords_that_people_try_suggest_ours(keyword: str, ours: str) -> None:
    with pytest.raises(TypeError, match=re.escape(ours)):
        Server("shop", **{keyword: "x"})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("keyword", "ours"),
    [
        ("auth", "Server(auth="),
        ("cors", "allowed_origins="),
        ("path", "Settings(path="),
        ("ssl_certfile", "tls_cert="),
        ("store", "Server(store="),
    ],
)
async def test_keywords_of_run_that_belong_to_the_server_say_so(keyword: str, ours: str) -> None:
    given: Any = {keyword: "x"}
    with pytest.raises(TypeError, match=re.escape(ours)):
        Server("shop").run(**given)
    with pytest.raises(TypeError, match=re.escape(ours)):
        await Server("shop").run_async(**given)


def test_description_in_place_of_the_function_becomes_an_option() -> None:
    with pytest.raises(TypeError, match=r"description='Adds two numbers\.'"):
        Server("shop").tool("Adds two numbers.")  # type: ignore[call-overload]


def test_client_keywords_from_other_packages_suggest_ours() -> None:
    for keyword, ours in {"auth": "Options(auth=", "elicitation_handler": "elicit=", "log_handler": "on_log="}.items():
        with pytest.raises(TypeError, match=re.escape(ours)):
            Client(Server("shop"), **{keyword: None})  # type: ignore[arg-type]


@for_each("option", ["readOnlyHint", "read_only_hint", "destructiveHint", "idempotentHint", "openWorldHint"])
def test_hints_as_options_suggest_annotations(option: str) -> None:
    with pytest.raises(TypeError, match=r"no option '\w+'\. Write annotations=ToolAnnotations\(\w+_hint=True\)\."):
        Server("shop").tool(lambda: 1, **{option: True})  # type: ignore[call-overload]


async def test_options_from_other_packages_suggest_ours() -> None:
    mcp = shop()

    @mcp.tool
    async def ask(ctx: Context) -> str:
        """Ask in the words of other packages."""
        asks: list[tuple[Callable[[], object], str]] = [
            (lambda: ctx.sample("Hi", system_prompt="Be brief."), "Write system=…"),  # type: ignore[call-arg]
            (lambda: ctx.sample("Hi", temprature=1), "did you mean 'temperature'"),  # type: ignore[call-arg]
            (lambda: ctx.elicit("Who?", response_type=str), "Write the type after the text"),  # type: ignore[call-overload]
        ]
        for wrong, words in asks:
            with pytest.raises(TypeError, match=words):
                wrong()
        return "asked"

    with pytest.raises(TypeError, match="Write output_schema=None"):
        mcp.tool(structured_output=False)(ask)  # type: ignore[call-overload]
    with pytest.raises(TypeError, match="Write `instructions=…`"):
        Server("shop", prompt="Sell books.")  # type: ignore[call-arg]
    async with Client(mcp) as client:
        assert (await client.call("ask")).text == "asked"


async def test_question_handlers_with_a_message_and_a_schema_are_rejected() -> None:
    def person(message: str, schema: object) -> str:
        return "decline"

    for make in (connect, Client):
        with pytest.raises(TypeError, match=r"elicit=lambda question: .*question\.message"):
            async with make(Server("shop"), elicit=person):  # type: ignore[operator]
                pass
    for each in (lambda question, more=(): more, lambda *given: given, print):
        Client(Server("shop"), elicit=each)


async def test_progress_handlers_under_other_names_are_rejected() -> None:
    async with Client(Server("shop")) as client:
        for name in ("on_progress", "progress_handler"):
            with pytest.raises(TypeError, match="write progress="):
                await client.call("order", **{name: print})


def test_server_repr_shows_name_and_items() -> None:
    mcp = Server("shop")

    @mcp.tool
    def order() -> str:
        """Order."""
        return ""

    assert repr(mcp) == "<Server 'shop': 1 tools, 0 resources, 0 templates, 0 prompts>"


def test_context_outside_a_call_says_where_it_comes_from() -> None:
    with pytest.raises(TypeError, match=r"a function receives its context in a parameter, .*ctx: Context\)"):
        Context()
