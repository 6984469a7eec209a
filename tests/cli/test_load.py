import importlib
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import pytest

from cases import for_each
from millstream._app.server_process import CommandError, report
from millstream._cli.load import compatible_imports, load
from millstream._modules import split_target
from patience import WAIT

ONE = 'from millstream import Server\nshop = Server("shop")\n'
TWO = 'from millstream import Server\nfirst = Server("first")\nsecond = Server("second")\n'


def failure(target: str) -> CommandError:
    with pytest.raises(CommandError) as caught:
        load(target)
    return caught.value


@for_each(
    ("target", "source", "name"),
    [
        ("shop.py", "shop.py", ""),
        ("shop.py:mcp", "shop.py", "mcp"),
        ("shop:mcp", "shop", "mcp"),
        ("a.b.shop", "a.b.shop", ""),
        (r"C:\code\shop.py", r"C:\code\shop.py", ""),
        (r"C:\code\shop.py:mcp", r"C:\code\shop.py", "mcp"),
        (":mcp", ":mcp", ""),
        ("shop.py:", "shop.py:", ""),
    ],
)
def test_colon_separates_file_and_name(target: str, source: str, name: str) -> None:
    assert split_target(target) == (source, name)


def test_the_only_server_in_a_file_is_found_by_type(folder: Path) -> None:
    (folder / "shop.py").write_text(ONE)
    assert load("shop.py").name == "shop"
    assert load(str(folder / "shop.py")).name == "shop"
    assert load("shop").name == "shop"
    assert load("shop:shop").name == "shop"


def test_server_with_two_names_counts_as_one(folder: Path) -> None:
    (folder / "shop.py").write_text(f"{ONE}asgi = shop\n")
    assert load("shop.py").name == "shop"


@for_each("name", ["mcp", "server", "app"])
def test_conventional_name_is_preferred_among_several_servers(folder: Path, name: str) -> None:
    (folder / "shop.py").write_text(f'{TWO}{name} = Server("customary")\n')
    assert load("shop.py").name == "customary"
    assert load("shop.py:second").name == "second"


@pytest.mark.parametrize(
    ("source", "target", "words"),
    [
        (f"{ONE}\nshop.run('http', port=1)\n", "shop.py", ("run() while it's being imported", "", "__main__", "")),
        (f"{ONE}\nshop.run('http', port=1)\n", "shop", ("run() while it's being imported", "", "__main__", "")),
        (ONE, "shpo.py", ("no file shpo.py", "FOLDER", "Did you mean shop.py?", "")),
        (ONE, "nowhere/shop.py", ("no file", "", "", "")),
        (ONE, "nosuchmodule", ("no module nosuchmodule", "FOLDER", "", "")),
        (ONE, "nosuch.module", ("no module nosuch.module", "FOLDER", "", "")),
        ("import nosuchpackage\n", "shop.py", ("nosuchpackage", "python", "", "shop.py")),
        ("import nosuchpackage\n", "shop", ("nosuchpackage", "python", "", "shop.py")),
        ("mcp = Server(\n", "shop.py", ("SyntaxError", "", "", "line 1")),
        ("import sys\nsys.exit(3)\n", "shop.py", ("", "", "__main__", "")),
        (f"{ONE}number = 1\n", "shop.py:number", ("number in shop.py is a int", "", "shop", "")),
        ("x = 1\n", "shop.py:mcp", ("", "", "Server(", "")),
    ],
)
def test_failures_name_the_problem_its_cause_and_a_fix(
    source: str, target: str, words: tuple[str, str, str, str], folder: Path
) -> None:
    (folder / "shop.py").write_text(source)
    error = failure(target)
    for word, text in zip(words, (error.what, error.why, error.fix, error.detail), strict=True):
        assert word.replace("FOLDER", str(folder)) in text


def test_errors_show_only_user_frames(folder: Path) -> None:
    (folder / "shop.py").write_text("import json\n\ndef read():\n    json.loads('{')\n\nread()\n")
    error = failure("shop.py")
    assert "JSONDecodeError" in error.what
    assert error.detail.count('File "') == 2
    assert "json.loads('{')" in error.detail
    assert "importlib" not in error.detail
    assert "decoder.py" not in error.detail


def test_signature_errors_show_no_internal_frames(folder: Path) -> None:
    (folder / "shop.py").write_text(
        "import threading\nfrom millstream import Server\nmcp = Server('shop')\n\n"
        "@mcp.tool\ndef buy(lock: threading.Lock) -> int:\n    return 1\n"
    )
    error = failure("shop.py")
    assert error.detail.count('File "') == 1
    assert "Which led to" not in error.detail
    assert "buy: parameter 'lock'" in error.detail
    assert error.fix == "Correct line 5 of shop.py."


@for_each("line", ["import packed\npacked.make()", "from packed import gone", "import packed.broken"])
def test_errors_from_installed_packages_name_the_line_of_the_program(
    folder: Path, monkeypatch: pytest.MonkeyPatch, line: str
) -> None:
    installed = folder / "installed"
    (installed / "packed").mkdir(parents=True, exist_ok=True)
    (installed / "packed" / "__init__.py").write_text("def make():\n    raise TypeError('unexpected')\n")
    (installed / "packed" / "broken.py").write_text("import packed\npacked.gone\n")
    monkeypatch.syspath_prepend(str(installed))
    paths = sysconfig.get_paths()
    monkeypatch.setattr(sysconfig, "get_paths", lambda: {**paths, "purelib": str(installed)})
    (folder / "shop.py").write_text(f"{line}\n")
    place = f"line {line.count(chr(10)) + 1} of shop.py"
    assert failure("shop.py").fix == f"Correct {place}."


def test_programs_for_an_old_fastmcp_are_rejected_with_the_version_they_need(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As in 2.10: no version, and the session manager is out of reach in a closure.
    (folder / "fastmcp").mkdir()
    (folder / "fastmcp" / "__init__.py").write_text("from fastmcp.server import FastMCP\n")
    (folder / "fastmcp" / "server.py").write_text(
        "from starlette.applications import Starlette\nfrom starlette.routing import Route\n\n"
        "class FastMCP:\n    name = 'shop'\n\n    def http_app(self):\n"
        "        async def handle(scope, receive, send): ...\n"
        "        return Starlette(routes=[Route('/mcp', handle)])\n"
    )
    information = folder / "fastmcp-2.10.1.dist-info"
    information.mkdir()
    (information / "METADATA").write_text("Name: fastmcp\nVersion: 2.10.1\n")
    monkeypatch.syspath_prepend(str(folder))
    (folder / "shop.py").write_text("from fastmcp import FastMCP\nmcp = FastMCP()\n")
    assert failure("shop.py").why == "fastmcp 2.10.1 is too old to run here. Update it to 2.11 or newer."


def test_error_for_a_folder_explains_how_to_run_a_server(folder: Path) -> None:
    (folder / "src").mkdir()
    error = failure("./src")
    assert error.what == "src is a folder."
    assert error.fix == "Specify a file in it: millstream run src/server.py"


@pytest.mark.parametrize("place", [".", "..", "beside"])
def test_errors_are_shown_for_files_in_any_folder(folder: Path, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    packages = f"{folder}"[:-1] if place == "beside" else f"{(folder / place).resolve()}"
    paths = sysconfig.get_paths()
    monkeypatch.setattr(sysconfig, "get_paths", lambda: {**paths, "purelib": packages, "platlib": packages})
    (folder / "shop.py").write_text("from json import nothing\n")
    error = failure("shop.py")
    assert "from json import nothing" in error.detail
    assert "cannot import name 'nothing'" in error.detail
    assert error.fix == ("Correct line 1 of shop.py." if place == "beside" else "Correct the error shown above.")


def test_error_causes_are_shown_first(folder: Path) -> None:
    (folder / "shop.py").write_text(
        "try:\n    open('prices.csv')\nexcept OSError as exc:\n    raise ValueError('no prices') from exc\n"
    )
    detail = failure("shop.py").detail
    assert detail.index("prices.csv") < detail.index("Which led to") < detail.index("ValueError: no prices")


@for_each("target", ["shop.py", "shop.py:app"])
def test_errors_suggest_mounting_the_server_in_framework_applications(folder: Path, target: str) -> None:
    (folder / "shop.py").write_text("from fastapi import FastAPI\n\napp = FastAPI()\n")
    error = failure(target)
    assert 'app.mount("/", mcp)' in error.fix
    assert "uvicorn shop:app" in error.fix
    (folder / "shop.py").write_text(f"from fastapi import FastAPI\n\n{ONE}app = FastAPI()\n")
    fix = failure("shop.py:app").fix
    assert fix.startswith("Use one of: shop.")
    assert 'app.mount("/", mcp)' in fix


def test_files_named_like_a_library_do_not_shadow_it(folder: Path) -> None:
    (folder / "json.py").write_text(ONE)
    import json  # noqa: PLC0415 - what the library is after the load is the subject

    assert load("json.py").name == "shop"
    assert json.loads("1") == 1


def test_main_files_of_packages_need_no_other_name(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "shops").mkdir()
    (folder / "shops" / "__init__.py").touch()
    (folder / "shops" / "__main__.py").write_text(ONE)
    assert load("shops/__main__.py").name == "shop"
    assert capsys.readouterr().err == ""


def test_files_can_import_siblings_and_use_dataclasses(folder: Path) -> None:
    (folder / "neighbor.py").write_text("name = 'from next door'\n")
    (folder / "shop.py").write_text(
        "from __future__ import annotations\nfrom dataclasses import dataclass\nimport neighbor\n"
        "from millstream import Server\n@dataclass\nclass A:\n    x: int\nmcp = Server(neighbor.name)\n"
    )
    assert load("shop.py").name == "from next door"


def test_main_guard_does_not_run(folder: Path) -> None:
    (folder / "shop.py").write_text(f"{ONE}if __name__ == '__main__':\n    raise SystemExit(1)\n")
    assert load("shop.py").name == "shop"


def test_reports_contain_the_problem_its_cause_and_a_fix(capsys: pytest.CaptureFixture[str]) -> None:
    report(CommandError("It broke.", why="Because.", fix="Mend it.", detail="  line 1\n"))
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == "Error: It broke.\n  line 1\n\n  Cause: Because.\n  Fix:   Mend it.\n"


def test_generated_dataclass_code_is_not_a_user_frame(folder: Path) -> None:
    (folder / "shop.py").write_text("from millstream import Server\nclass M: ...\nmcp = Server('x', middleware=[M])\n")
    error = failure("shop.py")
    assert "<string>" not in error.detail
    assert error.fix == "Correct line 3 of shop.py."


@for_each(
    ("code", "what"),
    [
        ("auth.keys(file='none.json')", "The key file none.json can't be read"),
        ("auth.users(file='none.json')", "The user file none.json can't be read"),
    ],
)
def test_setup_errors_keep_their_message(folder: Path, code: str, what: str) -> None:
    (folder / "shop.py").write_text(f"from millstream import Server, auth\nmcp = Server('x', auth={code})\n")
    error = failure("shop.py")
    assert error.what.startswith(what)
    assert error.why == "Line 2 of shop.py needs it."
    assert not error.detail


EXTRAS = {
    "@Server('x').tool(input_schema={'type': 'object'})\ndef f(arguments: dict) -> str: ...": (
        "jsonschema_rs",
        "schema",
    ),
}


@pytest.mark.server
@pytest.mark.parametrize("code", EXTRAS)
def test_missing_extras_are_reported_without_stack_frames(code: str, tmp_path: Path) -> None:
    package, extra = EXTRAS[code]
    source = f"import sys; sys.modules[{package!r}] = None\nfrom millstream import Server, auth\n{code}\n"
    (tmp_path / "shop.py").write_text(source)
    done = subprocess.run(
        [sys.executable, "-m", "millstream", "run", "shop.py", "--port", "0"],
        cwd=tmp_path, capture_output=True, text=True, timeout=WAIT, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert "needs an extra package.\n  Cause: Line 3 of shop.py requires it.\n" in done.stderr
    assert f"  Fix:   Run: pip install 'millstream[{extra}]'\n" in done.stderr
    assert "File " not in done.stderr


IMPORTED = {
    "mcp.server.elicitation": ["AcceptedElicitation", "CancelledElicitation", "DeclinedElicitation"],
    "mcp.server.fastmcp": ["Context", "FastMCP", "Icon", "Image"],
    "mcp.server.fastmcp.prompts.base": ["UserMessage"],
    "mcp.server.session": ["ServerSession"],
    "mcp.server.streamable_http": ["EventCallback", "EventMessage", "EventStore"],
    "mcp.shared.exceptions": ["McpError", "UrlElicitationRequiredError"],
    "mcp.shared.memory": ["create_connected_server_and_client_session"],
    "mcp.types": ["CallToolResult", "Completion", "ElicitRequestURLParams", "JSONRPCMessage", "PromptReference"],
}
"""What the SDK's own examples import, by module."""


@pytest.fixture
def no_sdk(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The imports of a program that `run` loads where no SDK is installed."""
    for name in [each for each in sys.modules if each.partition(".")[0] == "mcp"]:
        monkeypatch.delitem(sys.modules, name)
    with compatible_imports() as imports:
        sys.meta_path.remove(imports)
        sys.meta_path.insert(0, imports)
        yield
    for name in [each for each in sys.modules if each.partition(".")[0] == "mcp"]:
        del sys.modules[name]


@pytest.mark.usefixtures("no_sdk")
def test_program_for_version_2_of_the_sdk_suggests_it(folder: Path) -> None:
    for source in ("from mcp.server import MCPServer", "from mcp.server.mcpserver import MCPServer"):
        (folder / "new.py").write_text(source)
        told = failure("new.py")
        assert "--with mcp" in f"{told.what} {told.why} {told.fix}"


@pytest.mark.usefixtures("no_sdk")
def test_names_imported_by_the_sdk_examples_exist() -> None:
    missing = [
        f"{module}.{name}"
        for module, names in IMPORTED.items()
        for name in names
        if not hasattr(importlib.import_module(module), name)
    ]
    assert missing == []
