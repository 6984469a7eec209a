import os
import re
import subprocess
import sys
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import requests
import yaml
from dotenv import dotenv_values

from agent_world import KEY, ScriptedModel, calls, repeats
from cases import for_each
from examples_index import read_outputs
from millstream import Client
from millstream.client import AccessDenied
from patience import WAIT
from processes import ROOT, free_port, run_command, run_server, uvicorn_command
from reader_world import fits

pytestmark = pytest.mark.server

EXAMPLES = ROOT / "examples"
TIME, MATH, GREET, MOUNTED = (EXAMPLES / name for name in ("time_agent", "streaming_math", "greet", "mounted"))
DOCKER_KEY = "ma_cle_docker_secrete"
"""The default of seed 000, for the container only."""


def run(*command: str | Path, folder: Path, **env: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if "API" not in name and not name.startswith("MCP_")}
    return subprocess.run(
        [str(word) for word in command], cwd=folder, capture_output=True, text=True, timeout=WAIT, check=False,
        stdin=subprocess.DEVNULL, env={**kept, **env},
    )  # fmt: skip


def printed(*command: str | Path, folder: Path, **env: str) -> str:
    done = run(*command, folder=folder, **env)
    assert done.returncode == 0, done.stderr
    return done.stdout


CLIENTS = {
    "broadcast/load.py": "http://127.0.0.1:PORT",
    "broadcast/websocket_client.py": "ws://127.0.0.1:PORT/ws",
    "greet/clientnetwork.py": "http://127.0.0.1:PORT/sse",
    "mounted/client.py": "http://127.0.0.1:PORT",
    "oauth/client.py": "http://127.0.0.1:PORT/mcp",
    "streaming_math/mcp_client_http.py": "http://127.0.0.1:PORT",
}


@for_each(("path", "url"), CLIENTS.items())
def test_clients_suggest_the_command_that_starts_their_server(path: str, url: str) -> None:
    done = run(sys.executable, EXAMPLES / path, url.replace("PORT", str(free_port())), folder=EXAMPLES)
    error, advice = done.stderr.splitlines()
    assert done.returncode == 1
    assert error.startswith("Error: ")
    program = advice.removeprefix("To start the server, in another terminal: ").split()[1]
    assert (EXAMPLES / path).with_name(program.replace("main:app", "main.py")).is_file()


SERVERS = {
    "broadcast/load.py": run_command(str(EXAMPLES / "broadcast" / "main.py"), 0)[:-2],
    "broadcast/websocket_client.py": run_command(str(EXAMPLES / "broadcast" / "main.py"), 0)[:-2],
    "greet/clientnetwork.py": [sys.executable, str(GREET / "servernetwork.py")],
    "mounted/client.py": uvicorn_command("main:app", 0, "--app-dir", str(MOUNTED)),
    "streaming_math/mcp_client_http.py": [sys.executable, str(MATH / "mcp_server_add_http.py")],
}


@for_each(("path", "server"), SERVERS.items())
def test_clients_send_the_key_from_the_environment(path: str, server: list[str], tmp_path: Path) -> None:
    port, key = free_port(), {"MCP_SERVER_AUTH_KEY": "key-of-this-test-and-no-other"}
    url = CLIENTS[path].replace("PORT", str(port))
    with run_server([*server, "--port", str(port)], port, tmp_path / "log", **key):
        assert printed(sys.executable, EXAMPLES / path, url, folder=tmp_path, **key)
        refused = run(sys.executable, EXAMPLES / path, url, folder=tmp_path)
        assert refused.returncode == 1
        error, advice = refused.stderr.splitlines()
        assert error.startswith("Error: ")
        assert "MCP_SERVER_AUTH_KEY" in advice
        if path.startswith("mounted"):
            for script in ("stateful.sh", "stateless.sh"):
                assert '"content"' in printed("sh", MOUNTED / script, url, folder=tmp_path, **key)


# Seed 000


def test_agent_gets_the_time(tmp_path: Path) -> None:
    port = free_port()
    command = [sys.executable, str(TIME / "mcp_server.py"), "--auth-key", "my_secret_key", "--port", str(port)]
    client = tmp_path / "mcp_client_demo.py"  # reads the `.env` beside it
    client.write_text((TIME / "mcp_client_demo.py").read_text("utf-8"), "utf-8")
    script = (calls(("get_current_time", '{"timezone": "Europe/Paris"}')), repeats("It is "))
    with ScriptedModel(*script) as api, run_server(command, port, tmp_path / "log"):
        example = (TIME / ".env.example").read_text("utf-8")
        assert dotenv_values(stream=StringIO(example))["MCP_SERVER_AUTH_KEY"] == "my_secret_key"
        own = example.replace("localhost:8000", f"localhost:{port}")
        own = own.replace("https://api.example.com/v1", api.url).replace("your_api_key", KEY)
        (tmp_path / ".env").write_text(own)
        done = run(sys.executable, client, "--debug", folder=tmp_path)
        assert done.returncode == 0, done.stderr
        same = run(
            sys.executable, TIME / "sdk_client.py", f"http://localhost:{port}/sse", folder=tmp_path,
            MCP_SERVER_AUTH_KEY="my_secret_key",
        )  # fmt: skip
        (tmp_path / ".env").write_text(own.replace("my_secret_key", "another_key"))
        refused = run(sys.executable, client, folder=tmp_path)
        (tmp_path / ".env").write_text(own.replace("MCP_SERVER_AUTH_KEY", "# MCP_SERVER_AUTH_KEY"))
        keyless = run(sys.executable, client, folder=tmp_path)
    unreachable = run(sys.executable, client, folder=tmp_path)
    assert re.fullmatch(r"It is 20\S+\+0[12]:00\n", done.stdout)
    lines = [line.removeprefix("[DEBUG] ") for line in done.stderr.splitlines()]
    steps = [line for line in lines if not line.startswith(("sent {", "received {"))]
    shown = read_outputs()["python3 mcp_client_demo.py --debug"].replace("[DEBUG] ", "")
    shown = shown.replace("https://api.example.com/v1", api.url).replace("localhost:8000", f"localhost:{port}")
    assert fits("\n".join([*steps, done.stdout]), shown)
    assert any(line.startswith("sent {") and '"tools/call"' in line for line in lines)
    assert any(line.startswith("received {") and '"content"' in line for line in lines)
    messages = [line for line in lines if line.startswith(("sent {", "received {"))]
    assert [line for line in messages if "  <- " not in line] == [], "each message is explained"
    assert re.fullmatch(r"Tools: get_current_time\n20\S+\+0[12]:00\n", same.stdout), same.stderr
    assert steps[:4] == [
        f"Model your_model at {api.url}, MCP server http://localhost:{port}/sse",
        "Connected to Time Server (http+sse, 2025-11-25): auth OK",
        "Tools: get_current_time",
        "Asking the model (round 1)",
    ]
    assert steps[4] == "The model calls get_current_time {'timezone': 'Europe/Paris'}"
    assert api.requests[0].last["content"] == "What time is it?"
    assert (refused.returncode, refused.stdout) == (1, "")
    assert refused.stderr.startswith("Error: ")
    assert "403" in refused.stderr
    assert keyless.returncode == 1
    assert "Put the server's key into .env, as MCP_SERVER_AUTH_KEY." in keyless.stderr
    assert unreachable.returncode == 1
    assert "python3 mcp_server.py --auth-key my_secret_key" in unreachable.stderr


async def test_time_server_requires_its_key(tmp_path: Path) -> None:
    port = free_port()
    server = [sys.executable, str(TIME / "mcp_server.py"), "--port", str(port), "--debug"]
    command = ["env", f"MCP_SERVER_AUTH_KEY={DOCKER_KEY}", *server]
    url = f"http://127.0.0.1:{port}"
    with run_server(command, port, tmp_path / "log"):
        for path in ("/sse", "/mcp"):
            async with Client(url + path, headers={"Authorization": f"Bearer {DOCKER_KEY}"}) as client:
                assert (await client.call("get_current_time")).text.endswith("+00:00")
                wrong = await client.call("get_current_time", timezone="Nowhere", raise_on_error=False)
                assert (wrong.is_error, "IANA name" in wrong.text) == (True, True)
        for key, status in (({}, 401), ({"Authorization": "Bearer x"}, 403)):
            with pytest.raises(AccessDenied) as caught:
                async with Client(url + "/sse", headers=key):
                    pass
            assert caught.value.status == status
    assert DOCKER_KEY not in (tmp_path / "log").read_text()


def test_container_starts_the_example() -> None:
    [service] = yaml.safe_load((TIME / "docker-compose.yml").read_text("utf-8"))["services"].values()
    assert service["environment"] == {"MCP_SERVER_AUTH_KEY": DOCKER_KEY}
    assert all(port.startswith("127.0.0.1:") for port in service["ports"])
    recipe = (TIME / "Dockerfile").read_text("utf-8")
    entry: Any = yaml.safe_load(re.findall(r"^ENTRYPOINT (.*)$", recipe, re.MULTILINE)[0])
    assert entry[:2] == ["python", "mcp_server.py"]
    known = printed(sys.executable, TIME / "mcp_server.py", "--help", folder=TIME)
    assert {word for word in (*entry, *service["command"]) if word.startswith("--")} <= set(known.split())
    for copied in re.findall(r"^COPY (\S+)", recipe, re.MULTILINE):
        assert (TIME / copied).is_file()
    assert "USER 10001" in recipe


@for_each("folder", [TIME, MATH, MOUNTED], ids=lambda folder: folder.name)
def test_requirements_match_the_example(folder: Path) -> None:
    project = (ROOT / "pyproject.toml").read_text("utf-8")
    for line in (folder / "requirements.txt").read_text("utf-8").split():
        name, _, extra = line.partition("[")
        used = "\n".join(path.read_text("utf-8") for path in folder.rglob("*.py"))
        name = {"tzdata": "zoneinfo"}.get(name, name)  # which reads it
        assert re.search(rf"^from {name}\b", used, re.MULTILINE) or f"``{name} " in used  # imported, or typed
        assert all(f"\n{each} = [" in project for each in extra.rstrip("]").split(",") if each)


def test_example_configurations_use_known_variables() -> None:
    source = (ROOT / "src" / "millstream" / "agent" / "_configuration.py").read_text("utf-8")
    for path in (ROOT / ".env.example", TIME / ".env.example"):
        names = re.findall(r"^(?:# )?([A-Z_]+)=", path.read_text("utf-8"), re.MULTILINE)
        assert names
        assert [name for name in names if f'"{name}"' not in source] == []


# Seed 002


def test_numbers_are_streamed_over_http(tmp_path: Path) -> None:
    port = free_port()
    command = [sys.executable, str(MATH / "mcp_server_add_http.py"), "--port", str(port)]
    url = f"http://localhost:{port}"
    with run_server(command, port, tmp_path / "log"):
        lines = printed(sys.executable, "mcp_client_http.py", url, folder=MATH).splitlines()
        assert lines[0] == "server: streaming-math"
        assert {"add_numbers", "multiply_numbers"} <= set(lines[1].removeprefix("tools: ").split(", "))
        assert lines[2] == "10 + 5 = 15"
        assert any('"progress": 3' in line and "Adding" in line for line in lines[4:-1])
        assert '"text": "15"' in lines[-1]
        assert requests.get(f"{url}/health", timeout=WAIT).json()["status"] == "ok"
        assert requests.get(f"{url}/docs", timeout=WAIT).status_code == 200
        origin = {"Origin": "http://localhost:3000", "Access-Control-Request-Method": "POST"}
        allowed = requests.options(f"{url}/mcp", headers=origin, timeout=WAIT)
        assert allowed.headers["access-control-allow-origin"] == "http://localhost:3000"


@for_each(
    ("program", "more", "steps"),
    [("mcp_server_add.py", {}, []), ("mcp_server_add_sse.py", {"stream": True}, ["10 and 5", "Adding"])],
)
async def test_numbers_are_added_over_standard_input_and_output(
    program: str, more: dict[str, Any], steps: list[str]
) -> None:
    heard: list[str | None] = []
    async with Client([sys.executable, str(MATH / program)]) as client:
        result = await client.call(
            "add_numbers",
            {"a": 10, "b": 5, **more},
            progress=lambda done, of, what: heard.append(what),
            result_type=int,
        )
        assert (client.transport, result, heard) == ("stdio", 15, steps)


# Seed 003


def test_client_opens_a_stream_and_is_greeted(tmp_path: Path) -> None:
    port = free_port()
    with run_server([sys.executable, str(GREET / "servernetwork.py"), "--port", str(port)], port, tmp_path / "log"):
        said = printed(sys.executable, "clientnetwork.py", f"http://localhost:{port}/sse", folder=GREET)
    assert said.splitlines() == [
        "Hello Server 1.0.0 (http+sse, 2024-11-05)", "tools: greet", "Hello Hello, Azure OpenAI!"
    ]  # fmt: skip


# Seed 004


@pytest.mark.parametrize("sessions", [True, False])
def test_two_mounted_servers_work_with_scripts_and_client(sessions: bool, tmp_path: Path) -> None:
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    setting = f"MILLSTREAM_SESSIONS={str(sessions).lower()}"
    command = ["env", setting, *uvicorn_command("main:app", port, "--app-dir", str(MOUNTED))]
    with run_server(command, port, tmp_path / "log"):
        stateful = printed("sh", "stateful.sh", url, folder=MOUNTED)
        assert printed("sh", "stateless.sh", url, folder=MOUNTED).count("Echo: hello") >= 1
        if sessions:
            said = printed(sys.executable, "client.py", url, folder=MOUNTED)
            assert said.splitlines() == ["EchoServer: Echo: hello", "MathServer: 10"]
    session, *rest = stateful.splitlines()
    assert (len(session) > len("session: ") + 20) is sessions
    assert '"text":"10"' in "".join(rest)
