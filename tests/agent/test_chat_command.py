import json
import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import chdir
from functools import partial
from pathlib import Path

import pytest

from agent_world import KEY, RATE_LIMITED, ScriptedModel, Step, calls, hangs, repeats, says
from command_line import CliRunner, program
from patience import WAIT
from processes import ROOT, TEST_PATH, SharedServer, free_port, run_command, share_server
from terminal_world import COMMAND

pytestmark = pytest.mark.server

SHOP = str(ROOT / "tests" / "agent" / "shop.py")
TIME = calls(("get_current_time", '{"timezone": "UTC"}'))
SECRET = "my_secret_key"


OTHERS = [name for name in os.environ if "API" in name or name.startswith(("MCP_", "OPENAI_"))]
"""Variables of whoever runs the tests."""


class Done:
    """The output and status of a command, and the requests to the model."""

    def __init__(self, out: str, err: str, status: int, api: ScriptedModel) -> None:
        self.out, self.err, self.status, self.asked = out, err, status, api.requests
        assert "Traceback" not in self.err, self.err


def chat(*arguments: str, folder: Path, script: tuple[Step, ...] = (), given: str = "", **more: str) -> Done:
    """Run the command in a folder whose `.env` configures the model. ``API_URL="own"`` sets the URL again."""
    with ScriptedModel(*script) as api, chdir(folder):
        own = f"API_URL={api.url}\nAPI_KEY={KEY}\nDEFAULT_MODEL=test-model\n"
        (folder / ".env").write_text(own + more.pop("dotenv", ""))
        env = {name: api.url if value == "own" else value for name, value in more.items()}
        done = CliRunner().invoke(program("chat"), ["chat", *arguments], input=given, env=dict.fromkeys(OTHERS) | env)
        assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
        return Done(done.stdout, done.stderr, done.exit_code, api)


def start(*arguments: str, folder: Path, api: ScriptedModel, dotenv: str = "") -> subprocess.Popen[str]:
    """Start the command as a process."""
    (folder / ".env").write_text(f"API_URL={api.url}\nAPI_KEY={KEY}\nDEFAULT_MODEL=test-model\n{dotenv}")
    kept = {name: value for name, value in os.environ.items() if name not in OTHERS}
    pipe = subprocess.PIPE
    return subprocess.Popen(
        [*COMMAND, "chat", *arguments], stdin=pipe, stdout=pipe, stderr=pipe, text=True, cwd=folder,
        env={**kept, "PYTHONPATH": TEST_PATH},
    )  # fmt: skip


def test_standard_output_contains_only_the_answer(tmp_path: Path) -> None:
    script = (calls(("price", '{"isbn": "9780"}')), repeats("It costs "))
    done = chat(SHOP, "-m", "How much?", "--system", "Be brief.", "--model", "other", folder=tmp_path, script=script)
    assert (done.status, done.out) == (0, "It costs 4\n")
    assert done.err.splitlines() == ['call\tshop\tprice\t{"isbn": "9780"}', "done\tshop\tprice\t4"]
    assert done.asked[0].body["model"] == "other"
    assert done.asked[0].body["messages"][0]["content"].startswith("Be brief.")


BROKEN = """
from contextlib import asynccontextmanager
from pathlib import Path

from millstream import ProtocolError, Server
from millstream.middleware import Middleware


class Broken(Middleware):
    async def on_list(self, request, next):
        raise ProtocolError(-32000, "no lists")


@asynccontextmanager
async def lifespan(mcp):
    yield
    Path("closed").touch()


mcp = Server("broken", lifespan=lifespan, middleware=[Broken()])
mcp.tool(lambda: 1, name="one")
"""


def test_server_whose_tools_cannot_be_listed_is_closed(tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text(BROKEN, "utf-8")
    done = chat("broken.py", "-m", "Hello", folder=tmp_path)
    assert done.status == 1
    assert (tmp_path / "closed").exists()


def test_question_can_come_through_a_pipe(tmp_path: Path) -> None:
    done = chat(SHOP, folder=tmp_path, script=(says("Yes."),), given="Two\nlines\n")
    assert (done.out, done.asked[0].last["content"]) == ("Yes.\n", "Two\nlines")


def test_events_can_be_printed_as_json_lines(tmp_path: Path) -> None:
    script = (calls(("burn", '{"isbn": "1"}')), says("Gone."))
    done = chat(SHOP, "-m", "Burn @shop:book://1", "--json", "--yes", folder=tmp_path, script=script)
    events = [json.loads(line) for line in done.out.splitlines()]
    assert [each["type"] for each in events if each["type"] != "delta"] == [
        "user_message", "round_start", "tool_start", "tool_end", "round_start", "assistant_message", "answer_end"
    ]  # fmt: skip
    assert events[0]["context"] == ["@shop:book://1"]
    assert next(each["text"] for each in events if each["type"] == "tool_end") == "1 is gone"


def test_destructive_tools_do_not_run_without_a_terminal(tmp_path: Path) -> None:
    done = chat(SHOP, "-m", "Burn it", folder=tmp_path, script=(calls(("burn", '{"isbn": "1"}')), says("No?")))
    assert "burn wasn't allowed, because there's no terminal to prompt on. Use --yes to allow everything." in done.err
    assert done.asked[1].last["content"].startswith("The user didn't allow")


def test_rounds_are_limited(tmp_path: Path) -> None:
    script = tuple(calls(("count", "")) for _ in range(2))
    done = chat(SHOP, "-m", "Count", "--max-rounds", "2", folder=tmp_path, script=script)
    assert "progress\t1/2 half" in done.err
    assert "Stopped after 2 rounds of tool calls (--max-rounds)." in done.err


def test_several_servers_and_a_configuration_can_be_combined(tmp_path: Path) -> None:
    entry = {"command": COMMAND[0], "args": [*COMMAND[1:], "run", SHOP, "--transport", "stdio"]}
    entry["env"] = {"PYTHONPATH": TEST_PATH}  # type: ignore[assignment]
    (tmp_path / "mcp.json").write_text(json.dumps({"mcpServers": {"north": entry, "south": entry}}))
    script = (calls(("south__price", '{"isbn": "1"}')), says("So."))
    done = chat("mcp.json", "-m", "How much?", "--yes", folder=tmp_path, script=script)
    assert done.err.splitlines()[-1] == "done\tsouth\tprice\t1"
    done = chat("mcp.json", "-m", "How much?", folder=tmp_path, script=script)
    assert "price wasn't allowed, because there's no terminal to prompt on. Use --yes" in done.err


@pytest.fixture(scope="module")
def clock(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SharedServer]:
    """The server of `examples/hub.py`, which requires a key."""
    command = partial(run_command, "examples/hub.py")
    with share_server(lambda port: [*command(port), "--auth", SECRET], tmp_path_factory.mktemp("clock")) as server:
        yield server


@pytest.mark.parametrize("path", ["", "/mcp"])
def test_key_is_read_from_the_file(clock: SharedServer, tmp_path: Path, path: str) -> None:
    dotenv = f"MCP_SERVER_URL=http://localhost:{clock.port()}{path}\nMCP_SERVER_AUTH_KEY={SECRET}\n"
    script = TIME, repeats("It is ")
    done = chat("-m", "what time is it", "--debug", "--yes", folder=tmp_path, script=script, dotenv=dotenv)
    assert done.status == 0, done.err
    assert done.out.startswith("It is 20")
    assert done.out.endswith("+00:00\n")
    lines = [line.partition("] ")[2] for line in done.err.splitlines() if line.startswith("[debug")]
    steps = [line for line in lines if not line.startswith(("sent {", "received {"))]
    assert any(line.startswith("sent {") and '"tools/call"' in line for line in lines)
    assert any(line.startswith("received {") and '"content"' in line for line in lines)
    transport = "streamable-http" if path == "/mcp" else "http+sse"
    name = f"localhost-{clock.port()}"
    for number, wanted in enumerate([
        "configuration: model test-model at http://127.0.0.1:", f"server: http://localhost:{clock.port()}",
        f"connected to {name} by {transport} (Auth OK)", "session with hub 1.0.0: revision ", "tools: ",
        "question: what time is it", "asking the model: round 1",
        f'the model calls {name}: get_current_time {{"timezone"', "result of get_current_time (done): 20",
        "asking the model: round 2", "the model answers: 31 characters", "finished: done, rounds: 2",
    ]):  # fmt: skip
        assert steps[number].startswith(wanted), steps
    assert SECRET not in done.err
    assert KEY not in done.err


def test_keys_are_sent_only_to_their_server(clock: SharedServer, tmp_path: Path) -> None:
    dotenv = f"MCP_SERVER_URL=http://localhost:1\nMCP_SERVER_AUTH_KEY={SECRET}\n"
    url = f"http://localhost:{clock.port()}/mcp"
    done = chat(url, "-m", "Time?", folder=tmp_path, dotenv=dotenv)
    assert done.status == 4, done.err
    dotenv = f"MCP_SERVER_URL=http://localhost:{clock.port()}\nMCP_SERVER_AUTH_KEY=wrong\n"
    done = chat(url, "-m", "Time?", folder=tmp_path, dotenv=dotenv)
    assert (done.status, "403" in done.err) == (4, True)
    allowed = ["--header", f"Authorization: Bearer {SECRET}"]
    assert chat(url, "-m", "Time?", *allowed, folder=tmp_path, script=(says("Late."),)).out == "Late.\n"


@pytest.mark.parametrize(
    ("arguments", "more", "status", "words"),
    [
        ([], {}, 2, "No server is selected"),
        ([SHOP], {"API_KEY": "sk-wrong", "API_URL": "own"}, 4, "rejected the API key (401)"),
        ([SHOP], {"API_URL": "http://127.0.0.1:{port}/v1", "API_KEY": "k"}, 3, "http://127"),
        ([SHOP], {"API_URL": "nonsense", "API_KEY": "k"}, 2, "isn't the URL of an API"),
        ([SHOP], {"OPENAI_API_KEY": "k", "API_KEY": "k"}, 2, "same place"),
        ([SHOP, "--env-file", "other.env"], {}, 2, "other.env can't be read"),
        (["http://127.0.0.1:{port}/mcp"], {}, 3, "There is no server at"),
        (["no-such-program"], {}, 3, "There is no program"),
        ([SHOP, "--header", "x"], {}, 2, "Name: value"),
    ],
)
def test_failures_print_one_sentence_and_set_the_exit_status(
    arguments: list[str], more: dict[str, str], status: int, words: str, tmp_path: Path
) -> None:
    port = str(free_port())
    env = {name: value.replace("{port}", port) for name, value in more.items()}
    filled = [word.replace("{port}", port) for word in arguments]
    done = chat(*filled, "-m", "Hello", folder=tmp_path, **env)
    assert done.status == status, done.err
    assert words in done.err
    assert done.out == ""


def test_errors_can_be_printed_as_json(tmp_path: Path) -> None:
    done = chat(SHOP, "-m", "Hello", "--json", folder=tmp_path, script=(RATE_LIMITED,))
    assert json.loads(done.out.splitlines()[-1])["type"] == "failed"
    assert done.status == 1


def test_empty_standard_input_sends_no_question(tmp_path: Path) -> None:
    said = "There's no question, and no terminal to ask for one. Use -m TEXT, or send text through a pipe."
    done = chat(SHOP, folder=tmp_path)
    assert (done.status, done.out, done.err) == (2, "", f"Error: {said}\n")
    done = chat(SHOP, "--json", folder=tmp_path)
    assert (done.status, json.loads(done.out)) == (2, {"type": "failed", "error": said})


def test_closed_output_ends_the_command(tmp_path: Path) -> None:
    with ScriptedModel(says("word " * 50_000, pieces=50)) as api:
        process = start(SHOP, "-m", "Hello", folder=tmp_path, api=api)
        assert process.stdout is not None
        assert process.stdout.read(4) == "word"
        process.stdout.close()
        process.stdout = None
        _, said = process.communicate(timeout=WAIT)
    assert "Traceback" not in said
    assert process.returncode == 0, said


def test_ctrl_c_ends_one_question(tmp_path: Path) -> None:
    with ScriptedModel(hangs("Wait for it")) as api:
        process = start(SHOP, "-m", "Hello", folder=tmp_path, api=api)
        assert process.stdout is not None
        assert process.stdout.read(11) == "Wait for it"
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=WAIT)
    assert process.returncode == 130, said
    assert "Traceback" not in said
