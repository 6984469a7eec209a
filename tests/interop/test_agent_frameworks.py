"""Agents of other frameworks call tools through a gateway that shortens results, with a model that follows a script."""

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
from millstream import Server
from millstream.gateway import UpstreamPolicy
from patience import WAIT
from processes import ROOT
from programs import MISSING

pytestmark = [pytest.mark.server, pytest.mark.nightly]

HERE = Path(__file__).resolve().parent
PYTHON = ROOT / ".venv-agents" / "bin" / "python"
LONG = "count_the_copies_of_each_book_on_every_shelf_of_the_old_shops"
STEPS: list[tuple[str, dict[str, Any], str]] = [
    # tool, arguments, and text that the model must receive
    ("report", {}, r"line 0\b[\s\S]*line 30\b[\s\S]*result://\S+"),
    ("read_resource", {"uri": "RESULT", "offset": 27_000}, r"line 2999"),
    ("ask", {}, r"(?i)elicitation"),
    (LONG[:40], {"shelf": 7}, "7 copies"),
]


class Model:
    """A model that calls the tools of `STEPS` in order, and then answers."""

    def __init__(self) -> None:
        self.received: list[str] = []
        """What the requests say after each call."""

    async def respond(self, request: Request) -> Response:
        body = await request.json()
        names = [each["function"]["name"] for each in body.get("tools", ())]
        message: dict[str, Any] = {"role": "assistant", "content": "The run is complete."}
        if (number := len(self.received)) <= len(STEPS):
            last = body["messages"][-1]["content"]
            self.received.append(last if isinstance(last, str) else "".join(each["text"] for each in last))
        finishes = number >= len(STEPS)
        if not finishes or "final_answer" in names:
            tool, arguments = ("final_answer", {"answer": message["content"]}) if finishes else STEPS[number][:2]
            name = next(each for each in names if tool in each)
            uri = re.findall(r"result://[\w/~.-]+", "".join(self.received))
            text = json.dumps(arguments).replace("RESULT", uri[0] if uri else "")
            call = {"id": f"call_{number}", "type": "function", "function": {"name": name, "arguments": text}}
            message = {"role": "assistant", "content": None, "tool_calls": [call]}
        choice = {"index": 0, "message": message, "finish_reason": "tool_calls" if "tool_calls" in message else "stop"}
        usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
        completion = {"id": "c", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice]}
        return JSONResponse({**completion, "usage": usage})


@pytest.mark.parametrize("framework", ["langchain", "smolagents", "autogen"])
async def test_agents_receive_every_text_through_a_gateway(framework: str) -> None:
    if not (ROOT / ".venv-agents" / ".ready").exists():
        pytest.skip(f"{MISSING}agents")
    mcp, model = Server("gateway"), Model()
    command = [str(PYTHON), str(HERE / "agent_tools.py")]
    policy = UpstreamPolicy(result_tokens=500)
    mcp.upstream("shop", command, policy=policy, connect_timeout=WAIT, start_timeout=WAIT)
    mcp.route("/v1/chat/completions", methods=["POST"], public=True)(model.respond)
    async with mcp.running(), serve(mcp) as running:
        url = f"http://127.0.0.1:{running.port}"
        environment = {**os.environ, "NO_PROXY": "127.0.0.1", "OTEL_SDK_DISABLED": "true"}
        arguments = (framework, f"{url}/mcp", f"{url}/v1")
        process = await asyncio.create_subprocess_exec(
            str(PYTHON), str(HERE / "agent_frameworks.py"), *arguments, stdout=PIPE, stderr=PIPE, env=environment
        )
        try:
            async with asyncio.timeout(WAIT):
                answer, errors = await process.communicate()
        finally:
            if process.returncode is None:
                process.kill()
    assert answer.decode() == "The run is complete.", errors.decode()[-2_000:]
    for (tool, _, expected), text in zip(STEPS, model.received[1:], strict=True):
        assert re.search(expected, text), (tool, text[-500:], [each[-300:] for each in model.received])
