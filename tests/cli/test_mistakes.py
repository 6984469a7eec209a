import ast
import asyncio
import json
import os
import re
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from cases import for_each
from command_line import run_in_process
from millstream import Client, Context, Field, Image, Server, Settings, ToolAnnotations, auth
from millstream.client import BlockingClient, Options, ServerError
from millstream.testing import connect
from processes import ROOT

FILES = {
    "shop.py": '''from millstream import Server

mcp = Server("shop")


@mcp.tool
def order(isbn: str, copies: int = 1) -> int:
    """Order."""
    return copies


@mcp.tool
def remove_order(id: str) -> None:
    """Remove an order."""


@mcp.resource("book://all")
def books() -> str:
    """Books."""
    return "books"


@mcp.prompt
def pitch(title: str) -> str:
    """Pitch."""
    return title
''',
    "syntax.py": "from millstream import Server\nmcp = Server('x'\n",
    "none.py": "x = 1\n",
    "replaced.py": "from millstream import Server\nmcp = Server('x')\n\n\n@mcp.tool\ndef mcp() -> int:\n"
    '    """Return one."""\n    return 1\n',
    "needs.py": "import no_such_package\n",
    "inner.py": "from millstream.server import Context\n",
    "two.py": "from millstream import Server\na = Server('a')\nb = Server('b')\n",
    "raises.py": "1/0\n",
    "inside/raises.py": "1/0\n",
    "inside/misnamed.py": "from millstream.server import Sever\n",
    "inside/misspelled.py": "import json.ech\n",
    "variable.py": "import os\nKEY = os.environ['SHOP_KEY']\n",
    "inside/fast.py": "from mcp import FastMCP\nmcp = FastMCP('x')\n",
    "inside/mounts.py": "import shop\nfrom starlette.applications import Starlette\n\n"
    "app = Starlette()\napp.mount('/shop', shop.mcp)\n",
    "notes.txt": "hello",
    "servers.json": '{"mcpServers":{"a":{"command":"no-such-command"}}}',
    "one_string.json": '{"mcpServers":{"a":{"command":"sh x.py"}}}',
    "broken.json": "{",
    "empty.json": "{}",
    "wrong.toml": "[nonsense]\nx=1\n",
    "placed.toml": "[settings]\nserve = ['web']\n",
    "listed.toml": "[[upstreams]]\nname = 'shop'\n",
    "open.toml": "[upstreams.shop]\ncommand = ['python', 'shop.py']\n",
}
URL = "https://shop.example.com/mcp"
COMMANDS: list[tuple[str, str, str]] = [
    # command, what happened, what to do
    ("serve shop.py", 'Unknown command "serve"', "Use: millstream run"),
    ("serve", 'Unknown command "serve"', "Use: millstream run"),
    ("keys create", 'Unknown command "create"', "Use: millstream keys add"),
    ("gateway check open.toml", "Unexpected argument: open.toml.", "millstream doctor open.toml"),
    ("inspect shop.py", 'Unknown command "inspect"', "Use: millstream dev"),
    ("tools shop.py", 'Unknown command "tools"', "Use: millstream list"),
    ("lst shop.py", 'Unknown command "lst"', 'Did you mean "list"?'),
    ("nothing", "Available commands: init, run, gateway, dev,", "millstream --help"),
    ("shop.py", 'Unknown command "shop.py"', "Use: millstream run shop.py"),
    ("http://127.0.0.1:FREE/mcp", "Unknown command", "Use: millstream list http://127.0.0.1:FREE/mcp"),
    ("run", "Missing argument: FILE[:OBJECT].", "millstream run shop.py"),
    ("run shpo.py", "There is no file shpo.py.", "Did you mean shop.py?"),
    ("run .", ". is a folder.", "millstream run inner.py"),
    ("run no_such_module", "There is no module no_such_module.", "millstream run no_such_module.py"),
    ("run notes.txt", "notes.txt isn't a Python file.", "Use a file that ends in .py"),
    ("run syntax.py", "was never closed", "Correct line 2 of syntax.py."),
    ("run raises.py", "ZeroDivisionError", "Correct line 1 of raises.py."),
    ("run inside/raises.py", "inside/raises.py can't be imported", "Correct line 1 of inside/raises.py."),
    ("run variable.py", "KeyError: 'SHOP_KEY'", "doesn't pass on your shell's variables: add --env SHOP_KEY=VALUE"),
    ("run inside/misspelled.py", "json.ech, which the installed package json doesn't have", "Check its name"),
    ("run inside/fast.py", "cannot import name 'FastMCP'", "from mcp.server.fastmcp import FastMCP"),
    ("run inside/mounts.py", "has no millstream.Server", "mounted in app, so serve that: uvicorn mounts:app --app-dir"),
    ("run inside", "inside is a package without a server.", "Specify a module in it: millstream run inside.fast"),
    ("run shop.py --auth-key K", "run has no option --auth-key.", "millstream run shop.py --auth K"),
    ("run shop.py --log debug", "Unknown option: --log. Did you mean --log-level?", "millstream run --help"),
    ("run shop.py --secret K", "Unknown option: --secret.", "setting secret-key? Set it before the command"),
    ("dev shop.py --max-bod 1", "Unknown option: --max-bod.", "MILLSTREAM_MAX_BODY=VALUE millstream …"),
    ("run shop.py --debug", "run has no option --debug.", "millstream run shop.py --log-level debug"),
    ("call shop.py order --debug", "call has no option --debug.", "millstream dev shop.py"),
    ("list -v http://127.0.0.1:FREE/mcp", "list has no option -v.", "millstream doctor http://127.0.0.1:FREE/mcp"),
    ("run inside/misnamed.py", "Millstream has no module millstream.server.", "from millstream import Server"),
    ("run shop.py --stdio", "run has no option --stdio.", "millstream run shop.py --transport stdio"),
    ("run shop.py 9000", "Unexpected argument: 9000.", "millstream run shop.py --port 9000"),
    ("--debug run shop.py", "--debug comes after the command", "millstream run --log-level debug"),
    ("install shop.py cursor", "Unexpected argument: cursor.", "millstream install shop.py --client cursor"),
    ("init --template streaming_math", 'Invalid value "streaming_math"', 'Did you mean "math"?'),
    ("run needs.py", "No module named 'no_such_package'", "Install its package"),
    ("run none.py", "none.py has no millstream.Server.", 'mcp = Server("my-server")'),
    ("run two.py", "two.py has several servers: a, b.", "millstream run two.py:a"),
    ("run shop.py:mcpp", "There is no mcpp in shop.py.", "Use one of: mcp."),
    ("run shop.py --p 8", "Unknown option: --p. Did you mean --port?", "millstream run --help"),
    ("run shop.py --prot 8", "Unknown option: --prot.", "Did you mean --port?"),
    ("run shop.py --port 80000", "80000 isn't a valid port.", "Use --port 8000."),
    ("run shop.py --port abc", 'Invalid value "abc" for --port.', "Write a whole number."),
    ("run shop.py --serve hub web", "Unexpected argument: web.", "commas in a list"),
    ("init my shop", "Unexpected argument: shop.", "Put quotes around a value with spaces"),
    ("init shop --template", "--template needs a value.", "millstream init --help"),
    ("--nonsense", "There is no option --nonsense.", "millstream --help"),
    ("--nonsense call shop.py", "There is no option --nonsense.", "millstream --help"),
    ("--port 8 run shop.py", "--port comes after the command: millstream run --port", "millstream --help"),
    ("call shop.py order {'isbn':'978'}", "The argument isn't JSON", "double quotes"),
    ("run shop.py --port TAKEN", "Port TAKEN on 127.0.0.1 is in use.", "use another port: --port"),
    ("run shop.py --host 0.0.0.0", "callers don't have to sign in", "millstream run --auth-keys FILE"),
    ("gateway open.toml --host 0.0.0.0", "have to sign in", "start it with millstream gateway open.toml --auth-keys"),
    ("gateway servers.json --host 0.0.0.0", "have to sign in", "millstream gateway servers.json --auth-keys FILE"),
    ("run shop.py --transport ssee", 'Invalid value "ssee" for --transport.', 'Did you mean "sse"?'),
    ("run shop.py --serve chatt", "Unknown part 'chatt'", "Use --serve all"),
    ("run shop.py --workers 100000", 'Invalid value "100000" for --workers.', "Must be <= 1000."),
    ("run shop.py -- --color red", "Programs can't take arguments.", "millstream run -- python shop.py --color red"),
    ("call shop.py order isbn", "Arguments must be NAME=VALUE, not 'isbn'", "order isbn=VALUE."),
    ("keys list --file inside", "The key file inside can't be read: Is a directory.", "Use the path of a file."),
    ("run shop.py --workers 0", 'Invalid value "0" for --workers.', "Must be >= 1."),
    ("run shop.py --log-level loud", 'Invalid value "loud" for --log-level.', "Choose from:"),
    ("run shop.py --auth ''", "--auth is empty.", "Set a value for --auth"),
    ("run shop.py --auth-keys no.keys", "The key file no.keys can't be read", "Create one: millstream keys add"),
    ("run shop.py --store mysql://x", "Unknown store 'mysql'.", "sqlite:///file.db"),
    ("run shop.py --env-file no.env", "no.env can't be read", "Check the file's path."),
    ("dev shpo.py", "There is no file shpo.py.", "Did you mean shop.py?"),
    ("list http://127.0.0.1:FREE/mcp", "There is no server at", "Check the host and port"),
    ("list htp://127.0.0.1/mcp", "isn't a server URL.", "https://example.com/mcp"),
    ("list http://127.0.0.1:x/mcp", "isn't a valid URL", "its port isn't a number"),
    ("list no-such-command", "There is no program 'no-such-command'.", "on the PATH"),
    ("list nofile.py", "There is no file nofile.py.", "Did you mean none.py?"),
    ("list notes.txt", "notes.txt isn't a program.", "Use a .py"),
    ("list broken.json", "broken.json isn't valid JSON", "line 1 column 2"),
    ("list empty.json", "empty.json has no servers", '{"mcpServers":'),
    ("list servers.json", "There is no program 'no-such-command'.", "on the PATH"),
    ("list one_string.json", "There is no program 'sh x.py'.", '"args": ["x.py"]'),
    ("list servers.json#b", "servers.json has no server 'b'.", "It has: a."),
    ("list shop.py --revision 2020-01-01", "revision 2020-01-01", "2026-07-28"),
    ("list shop.py --header NoColon", "not 'NoColon'", '"Name: value"'),
    ("list shop.py -e NOEQUALS", "not 'NOEQUALS'", "NAME=VALUE"),
    ("list none.py", "none.py has no server", "write `from millstream import Server`"),
    ("list needs.py", "needs the module no_such_package", "Install its package"),
    ("run shop.py:mcp.app", "mcp.app isn't a global name.", "Use the server itself: shop.py:mcp"),
    ("list inner.py", "Millstream has no module millstream.server.", "from millstream import Context"),
    (
        "run needs.py",
        "needs the module no_such_package",
        "Install its package, or add it for one run: millstream run needs.py --with PACKAGE",
    ),
    ("call shop.py order --isbn 978", "call has no option --isbn.", "write isbn=978"),
    ("call shop.py order --auth-key K", "call has no option --auth-key.", "millstream call shop.py order --auth K"),
    ("list tools shop.py", "The server is the first argument", "millstream list shop.py"),
    ("call order shop.py", "The server is the first argument", "millstream call shop.py order"),
    ("list python shop.py", "A command with arguments comes after --.", "millstream list -- python shop.py"),
    ("list no-such-program a-server", "Unexpected argument: a-server.", "millstream list -- no-such-program a-server"),
    ("list no-such-program -q a", "Unknown option: -q", ""),
    ("list shop.py order", "Unexpected argument: order.", "millstream call shop.py order"),
    ("list shop.py --json=pretty", "--json takes no value.", "millstream list --help"),
    ("run shop.py none.py", "Unexpected argument: none.py.", "millstream gateway servers.json"),
    ("run replaced.py", "mcp is a function, not a server.", 'mcp = Server("my-server")'),
    ("call shop.py order isbn 978", "Arguments must be NAME=VALUE, not 'isbn'", "order isbn=978."),
    ("call shop.py order isbn:978", "not 'isbn:978'", "order isbn=978."),
    ("call shop.py delete_order", "The server has no tool 'delete_order'.", "It has: order, remove_order."),
    ("record shop.py", "Pass the recording file, then the server", "millstream record messages.jsonl shop.py"),
    ("call shop.py", "Missing argument: TOOL.", "millstream list shop.py"),
    ("call shop.py order 978", "Arguments must be NAME=VALUE, not '978'", "order isbn=978."),
    ("call shop.py order 978 2", "not '978'", "order isbn=978 copies=2."),
    ("call shop.py order isbn=978 2 3", "Arguments must be NAME=VALUE, not '2'", "millstream call --help"),
    ("call shop.py oder 978", "The server has no tool 'oder'.", "Did you mean order?"),
    ("prompt shop.py pitch Emma", "Arguments must be NAME=VALUE, not 'Emma'", "pitch title=Emma."),
    ("call shop.py order --input {", "--input isn't JSON", "millstream call --help"),
    ("call shop.py oder isbn=1", "The server has no tool 'oder'.", "Did you mean order?"),
    ("call shop.py book://all", "The server has no tool 'book://all'.", "millstream read shop.py book://all"),
    ("call shop.py order copies=two", "missing 'isbn'", '"isbn": string'),
    ("read shop.py book://al", "The server has no resource 'book://al'.", "Did you mean book://all?"),
    ("prompt shop.py pich", "The server has no prompt 'pich'.", "Did you mean pitch?"),
    ("install shop.py --client emacs", "emacs isn't a supported application", "cursor"),
    ("install shop.py --client claude-desktop", "claude-desktop isn't a supported", "Did you mean claude?"),
    ("install shop.py --client vs-code", "vs-code isn't a supported application", "Did you mean vscode?"),
    ("install nofile.py --client json", "There is no file nofile.py.", "Use a .py"),
    ("install shop.py --client json -v A", "not 'A'", "NAME=VALUE"),
    ("keys create", 'Unknown command "create"', "Use: millstream keys add"),
    ("keys add", "Missing argument: NAME.", "millstream keys add alice"),
    (
        "run python shop.py --port 0",
        "A command with arguments comes after --.",
        "millstream run -- python shop.py --port 0",
    ),
    ("call -- python shop.py order", "Missing argument: TOOL.", "millstream call TOOL -- python shop.py order"),
    ("list -- python shpo.py", "exited", "shpo.py"),
    ("list shop.py order", "Unexpected argument: order.", "millstream call shop.py order"),
    ("read shop.py order", "The server has no resource 'order'.", "It's a tool: millstream call shop.py order"),
    ("prompt shop.py order", "The server has no prompt 'order'.", "It's a tool: millstream call shop.py order"),
    ("call shop.py pitch", "The server has no tool 'pitch'.", "It's a prompt: millstream prompt shop.py pitch"),
    ("call shop.py order isbn=1 isbn=2", "isbn has several values.", "isbn=a,b"),
    ("install nofile.py", "There is no file nofile.py.", "Use a .py"),
    ("run shop.py -port 8000", "-port has two hyphens: --port.", "millstream run --help"),
    ("dev shop.py --reload", "dev always reloads", "Leave it out."),
    ("list shop.py --timeout 0", "--timeout must be greater than 0.", "millstream list --help"),
    ("--version run", "--version stands alone", "millstream --version"),
    ("mcp list shop.py", 'Unknown command "mcp"', "Use: millstream list shop.py"),
    ("keys revoke none", "There is no key 'none'.", "millstream keys list"),
    ("list shop.py --timeout abc", 'Invalid value "abc" for --timeout.', "Write a number."),
    ("gateway http://127.0.0.1:FREE/mcp", "There is no file", "For one server: millstream run URL"),
    ("gateway .", ". is a folder.", "Use a gateway.toml"),
    ("gateway ''", ". is a folder.", "Use a gateway.toml"),
    ("install . --client cursor", ". is a folder.", "Use a .py"),
    ("gateway nofile.toml", "There is no file nofile.toml.", "Use a gateway.toml"),
    ("gateway wrong.toml", "line 1: nonsense: unknown option", "use one of name"),
    ("init shop.py", "shop.py is a file, not a folder.", "millstream init DIR"),
    ("run shop.py --env LOG=1", "run has no option --env.", "--env-file FILE"),
    ("dev shop.py -e LOG=1", "dev has no option -e.", "NAME=VALUE millstream"),
    ("run shop.py --daemon", "Error: Unknown option: --daemon.\n", "millstream run --help"),
    ("run shop.py --allowed-hosts a.example", "run has no option --allowed-hosts.", "MILLSTREAM_ALLOWED_HOSTS=VALUE"),
    ("gateway servers.json --tool-timeout=30", "no option --tool-timeout.", "MILLSTREAM_TOOL_TIMEOUT=VALUE"),
    (
        "run shop.py --ssl-certfile a.pem",
        "run has no option --ssl-certfile.",
        "millstream run shop.py --tls-cert a.pem",
    ),
    (f"list {URL} --token K", "list has no option --token.", f"millstream list {URL} --auth K"),
    (f"doctor {URL} --key=K", "doctor has no option --key.", f"millstream doctor {URL} --auth=K"),
    ("users add ada --password secret", "users add has no option --password.", "reads it from a pipe"),
    ("users add ada secret", "Error: Unexpected argument.\n", "The command asks for it"),
    ("users list secret", "Unexpected argument: secret. Put quotes", "millstream users --help"),
    ("keys add ada --expires tomorrow", "Unknown option: --expires.", "millstream keys add --help"),
    ("call shop.py order isbn= 978", "isbn= is followed by a space.", "Write isbn=978."),
    ("prompt shop.py pitch title= Emma", "title= is followed by a space.", "Write title=Emma."),
    ("completion nosh", 'Invalid value "nosh"', 'Choose from: "bash"'),
    ("run shop.py --tls-cert missing.pem", "missing.pem: No such file or directory.", "Fix:   Check the path"),
    ("run shop.py --uds nowhere/x.sock", "Can't listen on the UNIX socket", "Fix:   Create the folder"),
    ("run shop.py --uds wrong.toml", "There is already a file, which isn't a socket.", "Fix:   Remove it"),
    (f"run shop.py --uds {'x' * 200}", "Can't listen on the UNIX socket", "fewer than 100 characters"),
    ("gateway listed.toml", "upstreams: it must be tables such as", "[upstreams.NAME]"),
    ("list http://127.0.0.1:FREE/mcp --transport sse", "list has no option --transport.", "Leave it out: the URL"),
    ("run shop.py --host 127.0.0.1:9000", "127.0.0.1:9000 isn't an address", "The port is --port."),
    ("install shop.py --client chatgpt", "chatgpt isn't a supported application", "add the server's URL"),
    ("list -- python -c raise(SystemExit(2))", "exited with code 2.", "Start it with `millstream run FILE"),
    ("gateway placed.toml", "settings.serve: unknown option;", "write it above the first table, or use --serve"),
]


@contextmanager
def ports() -> Iterator[dict[str, str]]:
    """A port in use, and one without a server."""
    with socket.create_server(("127.0.0.1", 0)) as taken, socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield {"TAKEN": str(taken.getsockname()[1]), "FREE": str(bound.getsockname()[1])}


def typed(words: list[str]) -> tuple[int, str]:
    """Run a command in this process, and return its status and output."""
    done = run_in_process(*words)
    return done.exit_code, done.output


@pytest.mark.server
def test_the_server_may_be_a_command_after_two_hyphens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "shop.py").write_text(FILES["shop.py"] + "\n\nif __name__ == '__main__':\n    mcp.run('stdio')\n")
    monkeypatch.chdir(tmp_path)
    for words in ("list -- python shop.py -v", "list --json -- python shop.py --json"):
        status, said = typed(words.replace("python", sys.executable).split())
        assert status == 0, said
        assert "remove_order" in said
        assert said.startswith("{") is (words.startswith("list --json"))
    assert typed(f"call order isbn=978 copies=2 -- {sys.executable} shop.py".split()) == (0, "2\n")
    assert typed(["call", "shop.py", "order", "--", "isbn=978", "copies=2"]) == (0, "2\n"), "-- ends the options"


@pytest.mark.server
def test_a_mistake_on_the_command_line_is_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "inside").mkdir()
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    for name in [each for each in os.environ if each.startswith(("MILLSTREAM_", "MCP_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("MILLSTREAM_PORT", "0")
    wrong: list[str] = []
    with ports() as given:
        for row in COMMANDS:
            command, *wanted = (each.replace("TAKEN", given["TAKEN"]).replace("FREE", given["FREE"]) for each in row)
            status, said = typed([each.replace("''", "") for each in command.split()])
            if status == 0 or not all(each in said for each in wanted) or "millstream/_" in said:
                wrong.append(f"{command}: {status} {said}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.server
def test_list_says_that_a_server_has_no_items(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bare.py").write_text("from millstream import Server\nmcp = Server('bare')\n")
    status, said = typed(["list", "bare.py"])
    assert (status, "no tools, resources, or prompts. Write @mcp.tool above a function." in said) == (0, True)
    assert typed(["list", "bare.py", "--json"])[1].startswith("{")


def test_remedies_name_the_make_target_that_was_typed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    makefile = (ROOT / "Makefile").read_text("utf-8")
    typed_command = re.search(r'TYPED_COMMAND="(.*)" \$\(BIN\)/millstream run examples/hub.py \$\(ARGS\)', makefile)
    assert typed_command
    monkeypatch.setenv("TYPED_COMMAND", typed_command[1])
    (tmp_path / "shop.py").write_text(FILES["shop.py"])
    monkeypatch.chdir(tmp_path)
    with ports() as given:
        taken = given["TAKEN"]
        for words, remedy in (
            (f"--port {taken}", f'use another port: make run ARGS="--port {int(taken) + 1}"'),
            ("--port 99999", 'Use make run ARGS="--port 8000".'),
            ("--host 0.0.0.0", 'start it with make run ARGS="--auth-keys FILE".'),
            ("--prot 1", 'make run ARGS="--help"'),
            ("--max-body 1", "MILLSTREAM_MAX_BODY=VALUE make run"),
        ):
            status, said = typed(["run", "shop.py", *words.split()])
            assert status
            assert remedy in said
            assert "millstream run" not in said


def program() -> Server:
    """A small server."""
    mcp = Server("shop")

    @mcp.tool
    def order(isbn: str, copies: int = 1) -> int:
        """Order."""
        return copies

    return mcp


def within(mistake: Callable[[Context], Any]) -> Callable[[], Any]:
    """Run a program with a mistake in a tool."""

    def work() -> Any:
        mcp = Server("shop")

        @mcp.tool
        async def look(ctx: Context) -> str:
            """Look."""
            try:
                mistake(ctx)
            except Exception as exc:
                return str(exc)
            return ""

        with BlockingClient(mcp) as client:
            raise LookupError(client.call("look").text)

    return work


def client_of(mistake: Callable[[Any], Any]) -> Callable[[], Any]:
    """Make a mistake with a client."""

    def work() -> Any:
        with BlockingClient(program()) as client:
            mistake(client)

    return work


def answered_by(answer: Any) -> Callable[[], Any]:
    """Answer the question of a tool."""
    mcp = Server("shop")

    @mcp.tool
    async def ask(ctx: Context) -> str:
        """Ask."""
        return await ctx.elicit("Which?", str)

    def work() -> Any:
        with BlockingClient(mcp, elicit=lambda _: answer) as client:
            client.call("ask")

    return work


TWO_SERVERS = {"mcpServers": {"a": {"command": "a"}, "b": {"command": "b"}}}
PROGRAMS: list[tuple[Callable[[], Any], str, str]] = [
    # mistake, what happened, what to do
    (lambda: exec("from millstream import FastMCP"), "has no FastMCP", "from millstream import Server"),  # noqa: S102
    (lambda: exec("from millstream import Sever"), "has no Sever", "Did you mean Server?"),  # noqa: S102
    (lambda: exec("from millstream import conext"), "has no conext", "Did you mean Context?"),  # noqa: S102
    (lambda: exec("from millstream.client import Clent"), "has no Clent", "Did you mean Client?"),  # noqa: S102
    (lambda: exec("from millstream.auth import jwtt"), "has no jwtt", "Did you mean jwt?"),  # noqa: S102
    (lambda: exec("from millstream.auth import BearerAuth"), "has no BearerAuth", "auth.keys or auth.jwt"),  # noqa: S102
    (lambda: exec("from millstream.auth import OAuthProxy"), "has no OAuthProxy", "auth.login_provider"),  # noqa: S102
    (lambda: exec("from millstream.gateway import Redactor"), "has no Redactor", "Did you mean Redaction?"),  # noqa: S102
    (lambda: exec("from millstream import tool"), "has no tool", "@mcp.tool, below mcp = Server"),  # noqa: S102
    (lambda: exec("from millstream import McpError"), "has no McpError", "ToolError"),  # noqa: S102
    (lambda: exec("from millstream import BlockingClient"), "has no BlockingClient", "millstream.client"),  # noqa: S102
    (lambda: program().list_tools(), "no attribute 'list_tools'", "client.tools()"),  # type: ignore[attr-defined]
    (lambda: program().list_resources(), "`@mcp.resource` adds", "client.resources()"),  # type: ignore[attr-defined]
    (lambda: program().call_tool(), "no attribute 'call_tool'", "To define a tool, write `@mcp.tool`."),  # type: ignore[attr-defined]
    (lambda: Server("shop", "Be kind."), "arguments after the first 1 by keyword", "version=…, instructions=…"),  # type: ignore[misc]
    (lambda: auth.introspection("https://shop.example.com"), "pass all arguments by keyword", "such as "),  # type: ignore[misc,call-arg]
    (lambda: program().add_middleware(1), "no attribute 'add_middleware'", "Server(middleware=["),  # type: ignore[attr-defined]
    (lambda: Server("shop", serve="hub").hub.subscribe, "no attribute 'subscribe'", "mcp.hub.listen(channel)"),  # type: ignore[attr-defined]
    (lambda: Server("shop", serve="hub").hub.emit, "no attribute 'emit'", "mcp.hub.publish(channel, data)"),  # type: ignore[attr-defined]
    (lambda: program().run(8000), "Unknown transport 8000", "write port=8000"),  # type: ignore[arg-type]
    (lambda: program().asgi, "no attribute 'asgi'", "app = mcp"),  # type: ignore[attr-defined]
    (lambda: program().middleware("http"), "no attribute 'middleware'", "`app = GZipMiddleware(mcp)` for HTTP"),  # type: ignore[attr-defined]
    (lambda: setattr(program().state, "limiter", 1), "no attribute 'state'", "Settings(limit_calls='60/minute')"),  # type: ignore[attr-defined]
    (lambda: program().exception_handler(1), "no attribute 'exception_handler'", "Raise ToolError"),  # type: ignore[attr-defined]
    (lambda: Server("shop", log_level="debug"), "'log_level'", "settings=Settings(log_level=…)"),  # type: ignore[call-arg]
    (lambda: Server("shop", settings=Settings(rate_limit="1/minute")), "'rate_limit'", "Set limit_calls"),  # type: ignore[call-arg]
    (lambda: Server("shop", settings=Settings(serve="hub")), "'serve'", "use --serve or Server(serve=…)"),  # type: ignore[call-arg]
    (lambda: program().run(path="/x"), "run has no option 'path'", "Settings(path=…)"),  # type: ignore[call-arg]
    (lambda: program().run(middleware=[]), "run has no option 'middleware'", "app = GZipMiddleware(mcp)"),  # type: ignore[call-arg]
    (lambda: program().run(show_banner=False), "run has no option 'show_banner'", "Leave it out"),  # type: ignore[call-arg]
    (lambda: connect(program()).__enter__(), "TestClient is asynchronous", "async with"),
    (lambda: connect(program(), user="ada"), "no option 'user'", "Write principal='ada'"),  # type: ignore[call-arg]
    (lambda: Image("x.png"), "'mime_type'", "Write Image(Path('x.png').read_bytes(), 'image/png')"),  # type: ignore[call-arg]
    (lambda: Image(path="x.png"), "'path'", "Write Image(Path('x.png').read_bytes(), 'image/png')"),  # type: ignore[call-arg]
    (lambda: exec("from millstream import connect"), "has no connect", "from millstream.testing import connect"),  # noqa: S102
    (lambda: BlockingClient(program(), token="K"), "'token'", "headers={'Authorization': 'Bearer KEY'}"),  # type: ignore[call-arg]
    (lambda: BlockingClient("x", transport="sse"), "'transport'", "a URL, or a command"),  # type: ignore[call-arg]
    (lambda: asyncio.run(BlockingClient(program()).__aenter__()), "BlockingClient blocks", "use Client"),  # type: ignore[attr-defined]
    (lambda: BlockingClient(TWO_SERVERS), "several servers: a, b", 'Pass one of them: {"mcpServers": {"a": {…}}}'),
    (lambda: program().rote, "no attribute 'rote'", "Did you mean 'route'?"),  # type: ignore[attr-defined]
    (lambda: program().run("sse2"), "sse2", "http"),
    (lambda: program().http_app(stateless_http=True), "stateless_http", "Settings"),
    (lambda: Server("shop", serv="hub"), "serv", "serve"),  # type: ignore[call-arg]
    (lambda: Server("shop", serve="chatt"), "Unknown part 'chatt'", "Use metrics, hub, rest, web, or all."),
    (lambda: Server("shop", port=8000), "port", "run"),  # type: ignore[call-arg]
    (lambda: Server("shop", settings=Settings(stor="x")), "stor", "store"),  # type: ignore[call-arg]
    (lambda: program().tool(titel="x")(len), "titel", "title"),  # type: ignore[call-overload]
    (lambda: program().tool(timeout="x")(len), "timeout must be", "a number of seconds"),  # type: ignore[call-overload]
    (lambda: program().tool(limit="10")(len), "limit must be", "10/minute"),  # type: ignore[call-overload]
    (lambda: program().disable("tool", "oder"), "oder", "order"),
    (auth.keys, "key", "keys"),
    (within(lambda ctx: ctx.set_state("a", 1)), "no attribute 'set_state'", "ctx.state[name] = value"),  # type: ignore[attr-defined]
    (within(lambda ctx: ctx.fastmcp), "no attribute 'fastmcp'", "the server itself"),  # type: ignore[attr-defined]
    (within(lambda ctx: ctx.hub), "This server has no hub", '(…, serve="hub"), or run it with --serve hub'),
    (lambda: asyncio.run(connect(program()).call("order", isbn="1")), "The client isn't connected", "async with"),  # type: ignore[arg-type]
    (client_of(lambda client: client.call("oder")), "oder", "did you mean 'order'?"),
    (client_of(lambda client: client.call("order")), "missing 'isbn'", '"isbn": string'),
    (client_of(lambda client: client.call("order", isbn=1)), "'isbn' must be a string", '"isbn": string'),
    (
        client_of(lambda client: client.call("order", arguments={"isbn": "1"})),
        "missing 'isbn'; unknown 'arguments'",
        "integer (optional)}. Send the values themselves, not inside 'arguments'.",
    ),
    (client_of(lambda client: client.call("order", "1")), "Pass arguments by name", "call('order', name='1')"),
    (client_of(lambda client: client.call("order", isbn="1")["sum"]), "isn't the value", "result.data['sum']"),
    (client_of(lambda client: client.prompt("pitch")), "The server has no prompts", "'pitch'"),
    (lambda: program().upstream("a", URL, auth="secret"), "auth takes credentials", "bearer(…)"),  # type: ignore[arg-type]
    (lambda: program().upstream("a", URL, headers="a: b"), "headers takes", "a dict of strings"),  # type: ignore[arg-type]
    (lambda: program().upstream("a", URL, forward_headers="x-a"), "forward_headers takes", "a list of strings"),
    (lambda: program().upstream("a", URL, trust="yes"), "trust takes", "'follow' or 'pin'"),  # type: ignore[arg-type]
    (lambda: program().upstream("a", URL, timeout="5"), "timeout takes", "a number of seconds above 0"),  # type: ignore[arg-type]
    (lambda: program().upstream("a", url=URL), "no option 'url'", "upstream(name, URL_OR_COMMAND)"),  # type: ignore[call-arg]
    (lambda: Server.from_openapi(URL), "can't be read", "mcp.upstream(name, openapi=URL)"),
    (lambda: list(Client(program()).tools()), "comes in pages", "`await` it first"),
    (client_of(lambda client: client.subscribe("a://b")), "no attribute 'subscribe'", "client.watch(uri)"),
    (client_of(lambda client: client.set_logging_level("info")), "set_logging_level", "set_log_level"),
    (lambda: Client(program()).__enter__(), "Client is asynchronous", "async with"),
    (lambda: Client(program(), header={}), "header", "headers"),  # type: ignore[call-arg]
    (lambda: Client(program(), headers={"A": 1}), "headers must be", "a dict of strings"),  # type: ignore[dict-item]
    (lambda: Client(program(), headers=["A"]), "headers must be", "a dict of strings"),  # type: ignore[arg-type]
    (lambda: Client(program(), timeout="5"), "timeout must be", "a number of seconds above 0"),  # type: ignore[arg-type]
    (lambda: Client(program(), timeout=0), "timeout must be", "a number of seconds above 0"),
    (lambda: Client(program(), roots="file:///x"), "roots must be", "a list of folders"),
    (lambda: Client(program(), options={"auth": 1}), "options must be", "Options(…)"),  # type: ignore[arg-type]
    (answered_by("yes"), "elicit returned str", 'Return the values as a dict, or "decline"'),
    (answered_by(5), "elicit returned int", 'Return the values as a dict, or "decline"'),
    (lambda: Client(program(), options=Options(logg_level="info")), "logg_level", "log_level"),  # type: ignore[call-arg]
]


def test_a_mistake_in_a_program_is_explained() -> None:
    wrong: list[str] = []
    for number, (mistake, *wanted) in enumerate(PROGRAMS):
        try:
            mistake()
        except Exception as exc:
            if not all(each in str(exc) for each in wanted):
                wrong.append(f"{number}, {wanted[0]}: {type(exc).__name__}: {exc}")
        else:
            wrong.append(f"{number}, {wanted[0]}: nothing was raised")
    assert not wrong, "\n".join(wrong)
    assert len(COMMANDS) + len(PROGRAMS) >= 60


GUESSES = {
    "tool": {
        "annotations=ToolAnnotations(destructive_hint=True)": "destructive destructiveHint destructive_hint",
        "annotations=ToolAnnotations(read_only_hint=True)": "read_only readonly readOnly readOnlyHint",
        "annotations=ToolAnnotations(idempotent_hint=True)": "idempotent idempotent_hint",
        "annotations=ToolAnnotations(open_world_hint=True)": "open_world openWorld",
        "enabled=False, or visible": "hidden hide",
        "'input_schema'": "schema params parameters inputSchema",
        "'limit'": "rate_limit",
        "'concurrency'": "max_concurrency",
        "'timeout'": "timeout_seconds",
        "'task_ttl'": "ttl",
        "Use one of annotations, coerce,": "titel",
        "use one of annotations, coerce,": "xyz",
    },
    "prompt": {"enabled=False, or visible": "hidden", "use one of description,": "read_only destructive xyz"},
    "resource": {"'mime_type'": "mime", "'size'": "size_bytes", "use one of annotations,": "idempotent xyz"},
}
"""Kind of item -> what an error suggests -> options that people guess."""


def test_guessed_options_of_items_lead_to_the_right_one() -> None:
    def item() -> str:
        """Return a text."""
        return ""

    mcp = Server("shop")
    decorators = {"tool": mcp.tool, "prompt": mcp.prompt, "resource": partial(mcp.resource, "book://1")}
    wrong: list[str] = []
    for kind, wanted in GUESSES.items():
        for hint, guesses in wanted.items():
            for guess in guesses.split():
                with pytest.raises(TypeError) as raised:
                    decorators[kind](**{guess: True})(item)  # type: ignore[operator]
                if hint not in str(raised.value):
                    wrong.append(f"{kind}, {guess}: {raised.value}")
    assert not wrong, "\n".join(wrong)
    for hint in GUESSES["tool"]:
        if hint.startswith("annotations="):  # what the error says works
            given = eval(hint.partition("=")[2], {"ToolAnnotations": ToolAnnotations})  # noqa: S307
            mcp.tool(name=hint.partition("(")[2].partition("=")[0], annotations=given)(item)


def test_unknown_settings_suggest_the_closest_ones() -> None:
    for guess, *wanted in (
        ("tls", "'tls_key' or 'tls_cert'"),
        ("tool_timeout_seconds", "'tool_timeout'"),
        ("xyz", "help(Settings) lists them."),
    ):
        with pytest.raises(TypeError) as raised:
            Settings(**{guess: 1})
        assert all(each in str(raised.value) for each in wanted), str(raised.value)
    with pytest.raises(ValueError, match="Did you mean MILLSTREAM_TLS_KEY or MILLSTREAM_TLS_CERT"):
        Settings.load({"MILLSTREAM_TLS": "a.pem"})


VOCABULARIES = {
    "ge": "minimum min min_value gte",
    "le": "maximum max max_value lte",
    "gt": "exclusiveMinimum exclusive_minimum",
    "lt": "exclusiveMaximum",
    "multiple_of": "multipleOf",
    "min_length": "minLength minItems min_items",
    "max_length": "maxLength maxItems max_items",
    "pattern": "regex",
    "description": "help_text describe",
    "title": "verbose_name",
    "examples": "example",
    "extra": "json_schema_extra",
    "Literal": "enum choices",
    "T | None": "nullable blank required optional",
    "datetime": "format",
    "ToolError": "validators",
}
"""Option of `Field` -> its names in JSON Schema, pydantic, Django, and zod."""


def test_constraints_of_other_libraries_suggest_the_one_that_means_the_same() -> None:
    for right, names in VOCABULARIES.items():
        for name in names.split():
            with pytest.raises(TypeError, match=rf"Field has no option '{name}'[.;] .*{re.escape(right)}") as caught:
                Field(**{name: 1})  # type: ignore[arg-type]
            assert "did you mean" not in str(caught.value) or f"did you mean '{right}'?" in str(caught.value)


@for_each(
    ("annotation", "written"),
    [
        ((int, None), "int | None"),
        ((int, str), "int | str"),
        ({int}, "int"),
        ([int, None], "list[int | None]"),
        ([str], "list[str]"),
        ((list[int], None), "list[int] | None"),
        (("a", "b"), "Literal['a', 'b']"),
        (("a", int), "a type, such as str"),
    ],
)
def test_annotations_that_are_no_types_suggest_python(annotation: object, written: str) -> None:
    def tool(a: Any) -> None: ...

    tool.__annotations__["a"] = annotation
    with pytest.raises(TypeError, match=re.escape(written)) as caught:
        Server("s").tool(tool)
    assert "<class" not in str(caught.value)


async def test_questions_without_await_are_named_in_expressions() -> None:
    uses: list[Callable[[Any], object]] = [
        lambda it: "said " + it, lambda it: it + " said", int, float, len, lambda it: "a" in it,
        lambda it: it * 2, lambda it: it < 3, lambda it: it >= 3, lambda it: [1, 2][it],
        str, bool, lambda it: it["x"], lambda it: f"{it}", lambda it: it == 1,
    ]  # fmt: skip
    mcp = Server("s", settings=Settings(show_errors=True))

    @mcp.tool
    async def ask(ctx: Context, number: int) -> str:
        return str(uses[number](ctx.elicit("Which?", str)))

    async with Client(mcp) as client:
        for number in range(len(uses)):
            failed = await client.call("ask", number=number, raise_on_error=False)
            assert "isn't awaited in line" in failed.text, (number, failed.text)


def test_parameters_named_context_suggest_its_type() -> None:
    mcp = Server("s")

    @mcp.tool
    def one(context) -> None:  # type: ignore[no-untyped-def]
        "D."

    @mcp.tool
    def two(count) -> None:  # type: ignore[no-untyped-def]
        "D."

    warnings = [mcp.definition.registry.tools[name].unclear for name in ("one", "two")]
    assert "context: Context" in warnings[0]
    assert "count: int" in warnings[1]


REQUIRED = """
from millstream import Server
mcp = Server("s")

@mcp.tool(task="required")
async def publish() -> str:
    "Publish."
    return "done"
"""


@pytest.mark.server
def test_tools_that_require_a_task_name_the_way_to_start_one(tmp_path: Path) -> None:
    file = tmp_path / "publisher.py"
    file.write_text(REQUIRED)
    failed = run_in_process("call", str(file), "publish")
    assert (failed.exit_code, failed.stderr) == (1, "Error: The tool runs only as a task. Add --task.\n")
    assert run_in_process("call", str(file), "publish", "--task").stdout == "done\n"
    with BlockingClient(str(file)) as client:
        with pytest.raises(ServerError, match="task=True"):
            client.call("publish")
        assert client.call("publish", task=True).text == "done"


@pytest.mark.server
def test_a_command_that_exits_without_serving_gets_advice_for_its_language(tmp_path: Path) -> None:
    script = tmp_path / "server.sh"
    script.write_text("#!/bin/sh\n")
    script.chmod(0o755)
    failed = run_in_process("list", str(script))
    assert "It exited without serving MCP on its standard input and output." in failed.stderr
    assert "millstream run FILE" not in failed.stderr
    assert "millstream run FILE" in run_in_process("list", f"{sys.executable} -c pass").stderr


OF_OTHERS = {
    "cannot import name 'Server' from partially initialized module 'millstream'",  # Python
    "Empty reply from server",  # curl
    "ERR_EMPTY_RESPONSE",  # Chrome
    "redirect_uri_mismatch",  # Google
    "406 Not Acceptable",
    "Server-to-client requests are not available on protocol revision …",  # the official SDK
    # Made of several texts
    "The server didn't respond to … within … seconds.",
    "has no tool '…'. Did you mean …?",
    "This requires elicitation/create, which needs a session",
}
"""Messages on the page that aren't a single string in the package."""


def strings_of_the_package() -> Iterator[str]:
    """Yield each string in the code, with ``…`` in place of each inserted value."""
    for path in sorted((ROOT / "src").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.JoinedStr):
                yield "".join(str(each.value) if isinstance(each, ast.Constant) else "…" for each in node.values)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield node.value


def test_messages_quoted_on_the_page_exist() -> None:
    page = (ROOT / "docs" / "guides" / "troubleshooting.md").read_text("utf-8")
    headings = re.findall(r"^### (`.+`)$", page, re.MULTILINE)
    quoted = {each.strip() for heading in headings for each in re.findall(r"`+([^`]+)`", heading)} - {", or"}
    ours = [*(each[1] for each in [*COMMANDS, *PROGRAMS]), *strings_of_the_package()]
    parts = {each: re.split("MCP_SERVER_AUTH_KEY|MILLSTREAM_…|…", each) for each in quoted - OF_OTHERS}
    assert {each for each, of in parts.items() if not any(all(part in text for part in of) for text in ours)} == set()
    assert quoted >= OF_OTHERS


def test_json_command_errors_include_the_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    status, said = typed(["lst", "--json"])
    assert (status, json.loads(said)["remedy"]) == (2, "millstream --help")
