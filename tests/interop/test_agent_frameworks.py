"""Agents of other frameworks call tools through a gateway, with a model that follows a script."""

import asyncio
import json
import os
import re
from asyncio.subprocess import PIPE
from pathlib import Path
from typing import Any

import pytest
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from http_peer import serve
from millstream import Context, ResourceLink, Server, Settings, auth
from millstream.gateway import UpstreamPolicy
from patience import WAIT
from processes import NODE, ROOT, free_port
from programs import MISSING

pytestmark = pytest.mark.server

HERE = Path(__file__).resolve().parent
LONG = "count_the_copies_of_each_book_on_every_shelf_of_the_old_shops"
KEY = "key-of-an-agent-0123456789abcdef"
OLD, NEW = "agents", "agents2"
"""Environments with the first and the second line of the official SDK."""
ENVIRONMENTS = {
    "langchain": OLD,
    "smolagents": OLD,
    "autogen": OLD,
    "openai_agents": NEW,
    "pydantic_ai": NEW,
    "llama_index": NEW,
}
DOCUMENTED = ["langchain", "openai_agents", "pydantic_ai", "llama_index", "ai_sdk"]
Steps = list[tuple[str, dict[str, Any], str]]
"""Tool, arguments, and text that the model must receive."""
STEPS: Steps = [
    ("report", {}, r"line 0\b[\s\S]*line 30\b[\s\S]*result://\S+"),
    ("read_resource", {"uri": "RESULT", "offset": 27_000}, r"line 2999"),
    ("ask", {}, r"(?i)elicitation"),
    ("confirm", {}, r"(?i)elicitation"),
    (LONG[:40], {"shelf": 7}, "7 copies"),
]
HIDDEN = {"openai_agents": r"An error occurred while running the tool. Please try again"}
"""What the model reads instead of the reason why a call was refused."""


def frameworks(*names: str) -> pytest.MarkDecorator:
    """Run a test with each framework. Those with an environment of their own run at night."""
    night = [pytest.mark.nightly]
    return pytest.mark.parametrize(
        "framework", [pytest.param(each, marks=night if each in ENVIRONMENTS else []) for each in names]
    )


class Model:
    """A model that calls the tools of `steps` in order, and then answers."""

    def __init__(self, steps: Steps) -> None:
        self.steps = steps
        self.received: list[str] = []
        """What the requests say after each call."""

    def choose(self, body: dict[str, Any]) -> tuple[str, dict[str, Any] | None]:
        """Return the name and the arguments of the next call, or the answer and None."""
        names = [each["function"]["name"] for each in body.get("tools", ())]
        if (number := len(self.received)) <= len(self.steps):
            last = body["messages"][-1].get("content") or ""
            self.received.append(last if isinstance(last, str) else "".join(each["text"] for each in last))
        if number >= len(self.steps):
            answer = "The run is complete."
            return ("final_answer", {"answer": answer}) if "final_answer" in names else (answer, None)
        tool, arguments, _ = self.steps[number]
        uri = re.findall(r"result://[\w/~.-]+", "".join(self.received))
        text = json.dumps(arguments).replace("RESULT", uri[0] if uri else "")
        return next(each for each in names if tool in each), json.loads(text)

    async def respond(self, request: Request) -> Response:
        """Respond as OpenAI's Chat Completions does."""
        text, arguments = self.choose(await request.json())
        message: dict[str, Any] = {"role": "assistant", "content": text}
        if arguments is not None:
            function = {"name": text, "arguments": json.dumps(arguments)}
            call = {"id": f"call_{len(self.received)}", "type": "function", "function": function}
            message = {"role": "assistant", "content": None, "tool_calls": [call]}
        choice = {"index": 0, "message": message, "finish_reason": "stop" if arguments is None else "tool_calls"}
        usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
        completion = {"id": "c", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice]}
        return JSONResponse({**completion, "usage": usage})

    async def respond_as_ollama(self, request: Request) -> Response:
        text, arguments = self.choose(await request.json())
        message: dict[str, Any] = {"role": "assistant", "content": text}
        if arguments is not None:
            message = {
                "role": "assistant",
                "content": "",
                "tool_calls": [{"function": {"name": text, "arguments": arguments}}],
            }
        return JSONResponse({"model": "m", "created_at": "2026-01-01T00:00:00Z", "message": message, "done": True})

    def check(self, framework: str, **replaced: str) -> None:
        for (tool, _, expected), text in zip(self.steps, self.received[1:], strict=True):
            assert re.search(replaced.get(tool, expected), text), (framework, tool, text[-500:], self.received)


async def run_agent(
    framework: str, mcp: Server, model: Model, *client: str, port: int | None = None
) -> tuple[str, str]:
    """Serve `mcp` and the model, run an agent to its end, and return its answer and its errors."""
    environment = ENVIRONMENTS.get(framework)
    if environment and not (ROOT / f".venv-{environment}" / ".ready").exists():
        pytest.skip(f"{MISSING}{environment}")
    program = (
        (str(ROOT / f".venv-{environment}" / "bin" / "python"), str(HERE / "agent_frameworks.py"), framework)
        if environment
        else (NODE, str(HERE / "agent_ai_sdk.mjs"))
    )
    mcp.route("/v1/chat/completions", methods=["POST"], public=True)(model.respond)
    mcp.route("/api/chat", methods=["POST"], public=True)(model.respond_as_ollama)
    async with mcp.running(), serve(mcp, **({} if port is None else {"port": port})) as running:
        url = f"http://127.0.0.1:{running.port}"
        process = await asyncio.create_subprocess_exec(
            *program, f"{url}/mcp", f"{url}/v1", KEY, *client, stdout=PIPE, stderr=PIPE,
            env={**os.environ, "NO_PROXY": "127.0.0.1", "OTEL_SDK_DISABLED": "true"},
        )  # fmt: skip
        try:
            async with asyncio.timeout(WAIT):
                answer, errors = await process.communicate()
        finally:
            if process.returncode is None:
                process.kill()
    return answer.decode(), errors.decode()[-3_000:]


def make_gateway(**options: Any) -> Server:
    """Return a gateway that takes one key, in front of a server on the first line of the official SDK."""
    mcp = Server("gateway", auth=auth.keys(named_keys={"agent": (KEY, [])}), **options)
    command = [str(ROOT / ".venv-mcp1" / "bin" / "python"), str(HERE / "agent_tools.py")]
    policy = UpstreamPolicy(result_tokens=500)
    mcp.upstream("shop", command, policy=policy, connect_timeout=WAIT, start_timeout=WAIT)

    @mcp.tool
    async def confirm(ctx: Context) -> str:
        """Ask the user."""
        return str(await ctx.elicit("Sure?", bool))

    @mcp.tool
    async def manual() -> ResourceLink:
        """Return a link to the manual."""
        return ResourceLink("https://example.com/manual.pdf", name="manual")

    return mcp


@frameworks(*ENVIRONMENTS, "ai_sdk")
async def test_agents_receive_every_text_through_a_gateway(framework: str) -> None:
    model = Model(STEPS)
    answer, errors = await run_agent(framework, make_gateway(), model)
    assert answer == "The run is complete.", (errors, model.received)
    model.check(framework, **({"confirm": HIDDEN[framework]} if framework in HIDDEN else {}))


@frameworks(*DOCUMENTED)
async def test_agents_find_and_call_tools_with_tool_search(framework: str) -> None:
    model = Model(
        [
            ("search_tools", {"query": "return a long text"}, "shop_report"),
            ("call_tool", {"name": "shop_report", "arguments": {}}, "line 30"),
        ]
    )
    answer, errors = await run_agent(framework, make_gateway(settings=Settings(tool_search=True)), model)
    assert answer == "The run is complete.", (errors, model.received)
    model.check(framework)


LINKS = {"langchain": "OpenAI Chat Completions does not support file URLs"}
"""The error that ends the run."""


@frameworks(*DOCUMENTED)
async def test_links_reach_the_model_or_end_the_run(framework: str) -> None:
    model = Model([("manual", {}, r"https://example\.com/manual\.pdf")])
    answer, errors = await run_agent(framework, make_gateway(), model)
    if framework in LINKS:
        assert LINKS[framework] in errors
        return
    assert answer == "The run is complete.", (errors, model.received)
    model.check(framework)


@frameworks(*DOCUMENTED)
async def test_agents_go_on_after_a_tool_fails_twice(framework: str) -> None:
    error = "Invalid arguments for tool"
    mcp = Server("shop", auth=auth.keys(KEY))
    model = Model([("count_copies", {"shelf": "x"}, error), ("count_copies", {"shelf": "y"}, error)])

    @mcp.tool
    async def count_copies(shelf: int) -> int:
        """Count copies."""
        return shelf

    answer, errors = await run_agent(framework, mcp, model)
    assert answer == "The run is complete.", (errors, model.received)
    model.check(framework)


@frameworks(*(each for each in DOCUMENTED if each != "ai_sdk"))
async def test_agents_sign_in_with_a_client_id_and_a_secret(framework: str, tmp_path: Path) -> None:
    port, secret = free_port(), "secret-of-an-agent-0123456789abcdef"
    agent = auth.client("agent", secret=secret, scopes=["shop"])
    (users := tmp_path / "users.json").write_text("{}")
    issuer = auth.issuer(f"http://127.0.0.1:{port}", users=auth.users(file=users), clients=[agent])
    mcp, model = Server("shop", auth=issuer), Model([("greet", {}, "Hello, agent!")])

    @mcp.tool(scopes=["shop"])
    async def greet(ctx: Context) -> str:
        """Greet the caller."""
        return f"Hello, {ctx.principal and ctx.principal.subject}!"

    answer, errors = await run_agent(framework, mcp, model, "agent", secret, port=port)
    assert answer == "The run is complete.", (errors, model.received)
    model.check(framework)
