import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from cases import for_each
from patience import WAIT
from test_structure import sources

pytestmark = pytest.mark.server

COMMAND = [sys.executable, "-c", "from millstream._cli import main; main()", "run"]
LIFESPAN = """
from contextlib import asynccontextmanager
from millstream import Server

def connect():
    raise ConnectionError("no database here")

@asynccontextmanager
async def lifespan(server):
    connect()
    yield

mcp = Server("shop", lifespan=lifespan)
"""
COMPLETER = """
from millstream import Server

mcp = Server("shop")

@mcp.complete("nothing", argument="word")
def words(value, arguments):
    return []
"""
PROGRAM = "\nif __name__ == '__main__':\n    mcp.run({!r}, port=0)\n"


@pytest.mark.parametrize("transport", ["http", "stdio"])
@pytest.mark.parametrize("way", ["command", "program"])
@pytest.mark.parametrize(
    ("source", "said"),
    [
        (
            LIFESPAN,
            (
                "Error: shop couldn't start: ConnectionError.\n"
                '  File "{0}", line 10, in lifespan\n    connect()\n'
                '  File "{0}", line 6, in connect\n    raise ConnectionError("no database here")\n'
                "ConnectionError: no database here\n\n"
                "  Fix:   Correct line 6 of shop.py.\n"
            ),
        ),
        (
            COMPLETER,
            (
                "Error: shop couldn't start.\n"
                "  Cause: complete('nothing', 'word'): no such prompt or resource template.\n"
            ),
        ),
    ],
    ids=["a lifespan that raises", "a completer of nothing"],
)
def test_failed_start_is_explained_once(tmp_path: Path, transport: str, way: str, source: str, said: str) -> None:
    file = tmp_path / "shop.py"
    file.write_text(source + PROGRAM.format(transport), "utf-8")
    options = [*COMMAND, str(file), "--transport", transport] if way == "command" else [sys.executable, str(file)]
    if way == "command" and transport == "http":
        options += ["--port", "0"]
    done = subprocess.run(options, input="", capture_output=True, text=True, timeout=WAIT, check=False)
    shown = re.sub(r"^ +[~^]+\n", "", done.stderr, flags=re.MULTILINE)  # since Python 3.13 also below a whole line
    assert (done.returncode, done.stdout, shown) == (1, "", said.format(file))


@pytest.mark.check
@for_each("path", sources("src"))
def test_messages_reference_only_packaged_files(path: Path) -> None:
    tree = ast.parse(path.read_text("utf-8"))
    docstrings = {
        id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }
    told = [
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings
    ]
    assert [text for text in told if "docs/" in text] == []
