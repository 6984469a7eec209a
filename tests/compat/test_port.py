"""`millstream port`: what it finds in a program, what it says, and what it changes."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from millstream._cli.program import program
from millstream.compat._porting import differences
from millstream.compat._porting.rewriting import rewritten
from millstream.compat._porting.survey import Use, survey

DOCS = Path(__file__).resolve().parents[2] / "docs" / "reference" / "compat.md"
PROGRAM = """\
from mcp.server.fastmcp import Context, FastMCP
from mcp.types import TextContent

mcp = FastMCP("shop", host="0.0.0.0", colour="red")


@mcp.tool()
async def buy(ctx: Context) -> TextContent:
    await ctx.info("buying")
    await ctx.session.send_tool_list_changed()
    await ctx.session.frobnicate()
    return TextContent(type="text", text=ctx.shop)


mcp.run(transport="stdio")
"""


def test_every_use_has_its_line_and_a_verdict() -> None:
    """Names, options, members of server, context and session."""
    found = survey(PROGRAM)
    missing = [(use.line, use.what) for use in found.missing]
    assert missing == [(4, "FastMCP(colour=…)"), (11, "session.frobnicate"), (12, "ctx.shop")]
    assert Use(1, "mcp.server.fastmcp.Context", True) in found.uses
    assert Use(15, "mcp.run", True, differences.MEMBERS["run"]) in found.uses
    assert Use(4, "FastMCP(host=…)", True, differences.OPTIONS["host"]) in found.uses


def test_only_the_modules_of_imports_change() -> None:
    """Comments, spacing and everything else stay; a client's imports stay, too."""
    source = "from fastmcp import (\n    FastMCP,  # a server\n)\nfrom mcp.client.session import ClientSession\n"
    assert rewritten(source, survey(source).changes) == (
        "from millstream.compat.fastmcp.standalone import (\n    FastMCP,  # a server\n)\n"
        "from mcp.client.session import ClientSession\n"
    )


@pytest.mark.parametrize(
    ("source", "code", "said"),
    [
        ("from mcp.server.fastmcp import FastMCP\n", 0, "here"),
        ("from mcp.server.lowlevel import Server\n", 1, "MISSING"),
        ("print('hello')\n", 2, ""),
        ("from millstream import Context, Server\n\ndef f(ctx: Context) -> None:\n    ctx.shop\n", 2, ""),
    ],
)
def test_the_exit_code_says_whether_all_is_here(tmp_path: Path, source: str, code: int, said: str) -> None:
    """Our choice: 0 for yes, 1 for something missing, 2 for a program of neither library."""
    path = tmp_path / "server.py"
    path.write_text(source)
    done = CliRunner().invoke(program("port"), ["port", str(path)])
    assert done.exit_code == code, done.output
    assert said in done.stdout
    assert path.read_text() == source


def test_write_shows_what_it_changes(tmp_path: Path) -> None:
    """The diff is printed, then the file is written."""
    path = tmp_path / "server.py"
    path.write_text("from mcp.server.fastmcp import FastMCP\n")
    done = CliRunner().invoke(program("port"), ["port", str(path), "--write"])
    assert "-from mcp.server.fastmcp import FastMCP\n+from millstream.compat.fastmcp import FastMCP" in done.stdout
    assert path.read_text() == "from millstream.compat.fastmcp import FastMCP\n"


@pytest.mark.parametrize("missing", ["from mcp.server.lowlevel import Server\n", "mcp.frobnicate()\n"])
def test_write_changes_nothing_where_something_is_missing(tmp_path: Path, missing: str) -> None:
    """Half of the imports from here and half from there is a program that doesn't run."""
    path = tmp_path / "server.py"
    source = f"from mcp.server.fastmcp import FastMCP\nmcp = FastMCP('shop')\n{missing}"
    path.write_text(source)
    done = CliRunner().invoke(program("port"), ["port", str(path), "--write"])
    assert done.exit_code == 1
    assert "MISSING" in done.stdout
    assert "server.py stays as it is" in done.stderr
    assert path.read_text() == source


def test_the_page_lists_every_difference() -> None:
    """The table of docs/reference/compat.md is the one that the command reads."""
    page = DOCS.read_text("utf-8")
    tables = (differences.OPTIONS, differences.MEMBERS, differences.CONTEXT, differences.MISSING)
    for name, text in [each for table in tables for each in table.items()]:
        assert f"| `{name}` | {text} |" in page
    for name, text in differences.BEHAVIOR.items():
        assert f"| {name} | {text} |" in page


ELSEWHERE = """\
import click
import mcp.types as mt
from mcp import types
from mcp.server import MCPServer
from mcp.server.mcpserver import Context
from mcp.server.mcpserver.prompts import base


def register(mcp: MCPServer) -> None:
    mcp.frobnicate()


class Shop:
    def __init__(self) -> None:
        self.mcp = MCPServer("shop")
        self.mcp.tool()(self.buy)
        self.mcp.add_transform(None)

    def buy(self, ctx: "Context | None", own: click.Context) -> mt.TextContent:
        own.get_parameter_source("x")
        ctx.shop
        return types.Nothing(base.UserMessage("x"), base.Nobody, mt.Never)
"""


def test_a_server_is_one_wherever_it_stands_and_a_context_is_one_of_theirs() -> None:
    """Parameters, attributes, modules under a name; `click.Context` is another library's."""
    found = survey(ELSEWHERE)
    assert [(use.line, use.what) for use in found.missing] == [
        (10, "mcp.frobnicate"),
        (17, "self.mcp.add_transform"),
        (21, "ctx.shop"),
        (22, "base.Nobody"),
        (22, "mt.Never"),
        (22, "types.Nothing"),
    ]
    assert Use(4, "mcp.server.MCPServer", True) in found.uses
    assert Use(16, "self.mcp.tool", True, differences.MEMBERS["tool"]) in found.uses
    assert rewritten(ELSEWHERE, found.changes).splitlines()[1:6] == [
        "import millstream.compat.types as mt",
        "from millstream.compat import types",
        "from millstream.compat.fastmcp import MCPServer",
        "from millstream.compat.fastmcp import Context",
        "from millstream.compat.fastmcp import base",
    ]


def test_another_librarys_context_is_not_looked_at() -> None:
    """Command lines have one, too."""
    source = "from click import Context\nfrom fastmcp import FastMCP\n\ndef main(ctx: Context) -> None:\n    ctx.shop\n"
    assert survey(source).missing == ()


def test_options_of_decorators_are_looked_at() -> None:
    """Those that the door refuses are missing; those that change nothing are said to."""
    found = survey(
        "from fastmcp import FastMCP\n"
        "mcp = FastMCP('shop')\n"
        "@mcp.tool(auth=check, tags={'a'}, task=True, title='Buy', colour='red', exclude_args=None)\n"
        "def buy() -> None: ...\n"
    )
    assert [use.what for use in found.missing] == ["tool(auth=…)", "tool(colour=…)"]
    assert "get_access_token()" in found.missing[0].differs
    assert Use(3, "tool(task=…)", True, "taken, and changes nothing") in found.uses


def test_what_a_program_keeps_on_its_server_is_its_own() -> None:
    """`mcp.database = …` works here as it does there; it isn't a member that's missing."""
    source = "from fastmcp import FastMCP\nmcp = FastMCP('shop')\nmcp.database = {}\nprint(mcp.database, mcp.shelf)\n"
    assert [use.what for use in survey(source).missing] == ["mcp.shelf"]
