import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from importlib.util import resolve_name
from pathlib import Path

import pytest

import millstream
import millstream.gateway
from cases import for_each
from patience import WAIT

pytestmark = pytest.mark.check

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "src" / "millstream"
LAYERS = [
    "_version",
    "_override",
    "_copies",
    "_confidential",
    "_text",
    "_suggestions",
    "_tasks",
    "_modules",
    "_recent",
    "files",
    "_oauth",
    "_protocol",
    "_troubles",
    "_lazy",
    "_yaml",
    "_frontmatter",
    "protocol",
    "_jsonc",
    "_config",
    "_http",
    "_telemetry",
    "_stores",
    "stores",
    "_limits",
    "hub",
    "_server",
    "items",
    "middleware",
    "auth",
    "_transports",
    "_parts",
    "client",
    "_gateway",
    "gateway",
    "agent",
    "extensions",
    "_web",
    "_app",
    "testing",
    "compat",
    "_cli",
]
GATEWAY = [
    "errors",
    "log",
    "names",
    "loops",
    "programs",
    "options",
    "rules",
    "questions",
    "messages",
    "credentials",
    "catalog",
    "processes",
    "upstreams",
    "calls",
    "apis",
    "files",
    "followers",
    "approvals",
    "relay",
    "part",
    "live_part",
]
"""Folders and files of the gateway. Each imports those above it."""
MAX_FACE = 30
"""Maximum names that a folder of the gateway lets others import, besides public ones."""
OPTIONAL = {
    "jsonschema_rs",
    "keyring",
    "opentelemetry",
    "psutil",
    "nats",
    "openai",
    "redis",
    "pyyaml",
}  # fmt: skip
NAMELESS = {"utils", "helpers", "common", "core", "misc", "manager", "base", "new", "old", "modern", "legacy2"}
PROGRAM_FOLDERS = ("src", "tests", "benches", "examples")
UNTRACKED = {
    "node_modules",
    "__pycache__",
    ".venv",
    ".pythons",
    ".adopt",
    ".bench",
    ".git",
    ".hypothesis",
    "dist",
    "results",
    "site",
}
DATE = re.compile(r"20\d\d-\d\d-\d\d")
HANDSHAKE = (
    b'{"jsonrpc":"2.0","id":1,"method":"initialize","params":{"protocolVersion":"2025-11-25","capabilities":{},'
    b'"clientInfo":{"name":"t","version":"1"}}}\n'
)


@cache
def sources(*folders: str) -> tuple[Path, ...]:
    """Every Python file below the folders, without installed packages."""
    found = [path for folder in folders for path in (ROOT / folder).rglob("*.py")]
    assert found, f"There are no files in {folders}, so their test would check nothing."
    return tuple(sorted(path for path in found if not UNTRACKED & set(path.relative_to(ROOT).parts)))


@cache
def tree_of(path: Path) -> ast.Module:
    """Each file is parsed once for all tests."""
    return ast.parse(path.read_text("utf-8"), filename=str(path))


@cache
def nodes_of(path: Path) -> tuple[ast.AST, ...]:
    """Everything in a file, the module first."""
    return tuple(ast.walk(tree_of(path)))


@pytest.fixture(scope="module", autouse=True)
def _trees_end_with_these_tests(no_garbage: None) -> Iterator[None]:  # pyright: ignore[reportUnusedFunction]
    """A million nodes would be in the way of every later look for garbage."""
    yield
    nodes_of.cache_clear()
    tree_of.cache_clear()


def layer_of(path: Path) -> str:
    """The part of the package a file belongs to; the package's own files are the topmost layer."""
    name = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    return "_cli" if name in ("__init__", "__main__") else name


@cache
def imported(path: Path) -> tuple[str, ...]:
    """Dotted names that a module imports, at any depth of its code, also with ``import_module("…")``."""
    found: list[str] = []
    for node in nodes_of(path):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            found += [f"{node.module or ''}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            found += [each.value for each in node.args[:1] if isinstance(each, ast.Constant)]
    return tuple(found)


def run_python(*argv: str, given: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    """Run the interpreter of the tests in the project's folder; 5 seconds are its bound."""
    done = subprocess.run(
        [sys.executable, *argv], input=given, capture_output=True, timeout=WAIT, cwd=ROOT, check=False
    )
    assert done.returncode == 0, done.stderr.decode()
    return done


def loaded_by(*argv: str, given: bytes = b"") -> tuple[set[str], bytes]:
    """Top-level packages that a program imports, as the interpreter reports them, and what it printed."""
    done = run_python("-X", "importtime", *argv, given=given)
    names = re.findall(rb"^import time:[^|]*\|[^|]*\| +([\w.]+)$", done.stderr, re.MULTILINE)
    return {name.decode().split(".")[0] for name in names}, done.stdout


def test_every_package_has_a_layer() -> None:
    assert {layer_of(path) for path in sources("src")} - set(LAYERS) == set()


def test_imports_point_to_lower_layers() -> None:
    upward: list[str] = []
    for path in sources("src"):
        own = LAYERS.index(layer_of(path))
        for name in imported(path):
            package, _, rest = name.partition(".")
            layer = rest.split(".")[0]
            if package == "millstream" and layer in LAYERS and LAYERS.index(layer) > own:
                upward.append(f"{path.relative_to(PACKAGE)} imports {name}, which lies above it")
    assert upward == []


@cache
def uses_of_the_gateway() -> tuple[tuple[str, str, str, str], ...]:
    """Folder or file of the gateway that takes a name, or empty for another package; folder, module, and name."""
    found: list[tuple[str, str, str, str]] = []
    for path in sources("src"):
        inside = path.relative_to(PACKAGE).parts
        user = inside[1].removesuffix(".py") if inside[0] == "_gateway" else ""
        # The table of parts names a class in a text: `package.module:Class`.
        texts = [
            node.value.replace(":", ".")
            for node in nodes_of(path)
            if isinstance(node, ast.Constant)
            and isinstance(node.value, str)
            and re.fullmatch(r"[\w.]+:\w+", node.value)
        ]
        for name in (*imported(path), *texts):
            if name.startswith("millstream._gateway."):
                module, _, last = name.removeprefix("millstream._gateway.").rpartition(".")
                folder, _, file = module.partition(".")
                if folder and folder != user:
                    found.append((user, folder, file, last))
    return tuple(found)


def face_of(folder: str) -> dict[str, list[str]]:
    """Return the names that a folder of the gateway lets others import, by module, from its docstring."""
    listed = ast.get_docstring(tree_of(PACKAGE / "_gateway" / folder / "__init__.py")) or ""
    found = re.findall(r"^- `(\w+)`: (.+(?:\n  .+)*)", listed, re.MULTILINE)
    return {module: re.split(r",\s+", names) for module, names in found}


def test_folders_of_the_gateway_import_downward() -> None:
    files = {path.name.removesuffix(".py") for path in (PACKAGE / "_gateway").iterdir()} - {"__init__", "__pycache__"}
    assert files == set(GATEWAY)
    assert [
        f"{user} takes {name} from {folder}.{file}, which is above it"
        for user, folder, file, name in uses_of_the_gateway()
        if user and GATEWAY.index(folder) > GATEWAY.index(user)
    ] == []


def test_folders_of_the_gateway_take_each_others_listed_names() -> None:
    public = set(millstream.gateway.__all__)
    folders = [each for each in GATEWAY if (PACKAGE / "_gateway" / each).is_dir()]
    taken = {
        (folder, file, name)
        for _, folder, file, name in uses_of_the_gateway()
        if folder in folders and name not in public
    }
    listed = {(folder, file, name) for folder in folders for file, names in face_of(folder).items() for name in names}
    assert taken - listed == set(), "List these names in the docstring of the folder's __init__.py, or use others."
    assert listed - taken == set(), "Nobody outside the folder uses these names. Remove them from its docstring."
    sizes = {folder: sum(map(len, face_of(folder).values())) for folder in folders}
    assert all(sizes.values()), sizes
    assert {folder: size for folder, size in sizes.items() if size > MAX_FACE} == {}


def test_modules_with_public_names_define_them() -> None:
    elsewhere: list[str] = []
    for path in sources("src"):
        homes: dict[str, str] = {}
        for node in tree_of(path).body:
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "_HOMES":
                homes = ast.literal_eval(node.value)
        for name, home in homes.items():
            parts = path.with_suffix("").relative_to(PACKAGE.parent).parts
            module = resolve_name(f".{home}", ".".join(part for part in parts if part != "__init__"))
            file = PACKAGE.parent.joinpath(*module.split("."))
            file = file / "__init__.py" if file.is_dir() else file.with_suffix(".py")
            defined = {
                target
                for node in tree_of(file).body
                for target in (
                    [node.name]
                    if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
                    else [ast.unparse(each) for each in node.targets]
                    if isinstance(node, ast.Assign)
                    else [ast.unparse(node.target)]
                    if isinstance(node, ast.AnnAssign)
                    else []
                )
            }
            if name not in defined:
                elsewhere.append(f"{path.relative_to(PACKAGE)}: {name} isn't defined in {module}")
    assert elsewhere == [], "\n".join(elsewhere)


GUESTS = ("extensions", "agent")
"""Packages that import what a package of others could import. The gateway isn't one of them (decision 0053)."""


def test_agent_and_extensions_use_the_public_interface() -> None:
    private: list[str] = []
    for guest in GUESTS:
        for path in sources(f"src/millstream/{guest}"):
            folders = path.relative_to(PACKAGE / guest).parts[:-1]
            if guest == "extensions" and not folders:
                continue  # the public interface of extensions itself
            own = ".".join(("millstream", guest, *(folders[:1] if guest == "extensions" else ()), ""))
            private += [
                f"{path.relative_to(PACKAGE)} uses {name}"
                for name in imported(path)
                if name.startswith("millstream.") and re.search(r"\._(?!_)", name) and not name.startswith(own)
            ]
    # `typing.override` of later Pythons
    assert [line for line in private if not line.endswith(" millstream._override.override")] == []


def test_logged_failures_are_in_the_table_of_troubles_or_say_why_not() -> None:
    calls = [
        (path.name, *found)
        for path in sources("src")
        for found in re.findall(r"(?<!class )LogOnce\(\s*([\w.]+),(.*)", path.read_text("utf-8"))
    ]
    assert len(calls) > 20
    without = [each for each in calls if not each[1].endswith("troubles")]
    assert [each for each in without if not (each[1] == "None" and each[2].startswith("  # "))] == []


MAX_FILES_THAT_IMPORT_INSIDE = 256
"""Maximum number of files of the tests, helpers included, that import private modules of other subjects. It may only
fall.
"""
MAX_PRIVATE_NAMES = 754
"""The same for the names that these files import."""


def test_test_files_import_the_private_module_they_are_named_after() -> None:
    """Moving a module then changes its own tests, and the helpers that import its names for others."""
    inside, names = list[str](), set[str]()
    for path in sources("tests"):
        own = path.stem.removeprefix("test_")
        for name in imported(path):
            parts = [part.strip("_") for part in name.split(".")]
            near = own in parts or (path.parts[-3] == "gateway" and path.parent.name in parts)
            if parts[0] == "millstream" and re.search(r"\._(?!_|override\.)", name) and not near:
                inside.append(f"{path.relative_to(ROOT)} imports {name}")
                names.add(name)
    files = len({line.partition(" ")[0] for line in inside})
    assert files <= MAX_FILES_THAT_IMPORT_INSIDE, f"{files} files:\n" + "\n".join(inside)
    assert len(names) <= MAX_PRIVATE_NAMES, f"{len(names)} names:\n" + "\n".join(inside)


def test_other_libraries_are_used_through_their_public_names() -> None:
    module = re.compile(r"(mcp|mcp_types|fastmcp)(\.\w+)*")
    inside: list[str] = []
    for path in sources("src"):
        texts = [
            node.value for node in nodes_of(path) if isinstance(node, ast.Constant) and isinstance(node.value, str)
        ]
        names = [name for name in (*imported(path), *texts) if module.fullmatch(name) and "._" in name]
        if "_programs" in path.parts or path.name == "program_server.py":
            names += [text for text in texts if text != "_meta" and re.fullmatch(r"_[a-z]\w*", text)]
            for node in nodes_of(path):
                foreign = isinstance(node, ast.Attribute) and ast.unparse(node.value) not in ("self", "cls")
                if isinstance(node, ast.Attribute) and foreign and re.match("_[a-z]", node.attr):
                    names.append(ast.unparse(node))
        inside += [f"{path.relative_to(PACKAGE)} uses {name}" for name in names]
    assert inside == []


def test_imports_have_no_cycles() -> None:
    graph = module_graph()
    waiting = {module: set(targets) for module, targets in graph.items()}
    while free := {module for module, targets in waiting.items() if not targets & set(waiting)}:
        waiting = {module: targets for module, targets in waiting.items() if module not in free}
    # What merely imports a circle is in none.
    while idle := set(waiting) - {target for targets in waiting.values() for target in targets}:
        waiting = {module: targets for module, targets in waiting.items() if module not in idle}
    assert set(waiting) == set()


def module_graph() -> dict[str, set[str]]:
    """Every module of the package, and the others that it imports, wherever in its code."""
    paths = {
        ".".join(("millstream", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__"): path
        for path in sources("src")
    }
    graph: dict[str, set[str]] = {}
    for module, path in paths.items():
        graph[module] = set()
        for name in imported(path):
            target = name if name in paths else name.rpartition(".")[0]
            if target in paths and target not in (module, "millstream"):
                graph[module].add(target)
    return graph


def test_protocol_package_does_no_io() -> None:
    outside = {"asyncio", "datetime", "io", "logging", "os", "pathlib", "random", "secrets", "socket", "time"}
    for path in sources("src/millstream/_protocol"):
        used = {name.split(".")[0] for name in imported(path)}
        assert not used & outside, f"{path.name} imports {used & outside}"


def test_only_one_module_composes_text() -> None:
    found = {
        path.relative_to(PACKAGE).as_posix()
        for path in sources("src")
        for node in nodes_of(path)
        if (isinstance(node, ast.Attribute) and node.attr in {"normalize", "is_normalized", "ucd_3_2_0"})
        or (isinstance(node, ast.ImportFrom) and node.module in {"unicodedata", "stringprep", "encodings.idna"})
    }
    assert found == {"_protocol/compose.py"}


def test_only_one_module_encodes_hosts() -> None:
    """The codecs take quadratic time, or more, for long labels."""
    codecs = {"idna", "punycode"}
    found = {
        path.relative_to(PACKAGE).as_posix()
        for path in sources("src")
        for node in nodes_of(path)
        if isinstance(node, ast.Constant) and node.value in codecs
    }
    assert found == {"_protocol/uri.py"}


def test_optional_dependencies_are_imported_in_one_package() -> None:
    users: dict[str, set[str]] = {}
    for path in sources("src"):
        for name in {name.split(".")[0] for name in imported(path)} & OPTIONAL:
            users.setdefault(name, set()).add(layer_of(path))
    assert {name: layers for name, layers in users.items() if len(layers) > 1} == {}


def test_core_installation_has_no_optional_dependency() -> None:
    lock = (ROOT / "requirements" / "run.txt").read_text("utf-8")
    assert set(re.findall(r"^([\w-]+)==", lock, re.MULTILINE)) & OPTIONAL == set()


def test_modules_have_docstrings() -> None:
    silent = [str(path.relative_to(ROOT)) for path in sources("src") if not ast.get_docstring(tree_of(path))]
    assert [name for name in silent if not name.endswith("__init__.py")] == []


def test_module_names_are_specific() -> None:
    names = {str(path.relative_to(ROOT)) for path in sources(*PROGRAM_FOLDERS) if path.stem in NAMELESS}
    folders = {str(path.relative_to(ROOT)) for path in PACKAGE.rglob("*") if path.is_dir() and path.name in NAMELESS}
    assert (names | folders) - {"src/millstream/_stores/base.py"} == set()


def test_revision_dates_appear_only_in_the_table() -> None:
    found: list[str] = []
    for path in sources("src"):
        if path == PACKAGE / "_protocol" / "revisions.py":
            continue
        prose = {id(node.value) for node in nodes_of(path) if isinstance(node, ast.Expr)}
        for node in nodes_of(path):
            if isinstance(node, ast.Constant) and isinstance(node.value, str | bytes) and id(node) not in prose:
                text = node.value if isinstance(node.value, str) else node.value.decode("latin-1")
                if DATE.search(text):
                    found.append(f"{path.relative_to(ROOT)}:{node.lineno}")
    assert found == []


def test_public_names_match_all() -> None:
    assert len(millstream.__all__) <= 32
    assert len(set(millstream.__all__)) == len(millstream.__all__)
    for name in millstream.__all__:
        assert getattr(millstream, name) is not None
    ours = {
        name for name, value in vars(millstream).items() if getattr(value, "__module__", "").startswith("millstream")
    }
    assert {name for name in ours if not name.startswith("_")} == set(millstream.__all__)


def test_importing_the_server_loads_few_modules() -> None:
    names = ", ".join(name for name in millstream.__all__ if name != "Client")
    assert modules_after(f"from millstream import {names}") <= 260


def test_importing_the_client_loads_few_modules() -> None:
    assert modules_after("from millstream import Client") <= 237
    loaded, _ = loaded_by("-c", "from millstream import Client")
    assert not loaded & {"cryptography", "h11", "rich", "starlette", "cyclopts", "uvicorn", "uvloop", "websockets"}


NEWER = {
    "_colorize", "_hmac", "_interpreters", "_opcode_metadata", "_py_warnings", "_tokenize", "_types", "annotationlib",
    "asyncio.graph", "glob", "grp", "pathlib._abc", "pathlib._local", "pathlib._os", "pwd",
}  # fmt: skip
"""Modules that asyncio, dataclasses, pathlib and others of the standard library load since Python 3.12 to 3.14."""


def modules_after(statement: str) -> int:
    """How many modules a statement loads, besides those that the same statement did not load on Python 3.11."""
    program = f"import sys; before = set(sys.modules); {statement}; print(*(set(sys.modules) - before))"
    return len(set(run_python("-c", program).stdout.decode().split()) - NEWER)


def test_importing_the_package_loads_no_third_party_module() -> None:
    loaded, _ = loaded_by("-c", "import millstream")
    assert not loaded & {"msgspec", "starlette", "uvicorn", "cryptography", "httpx2", "cyclopts", "rich", "websockets"}


PROGRAMS = {
    "own": ("-c", "import runpy; runpy.run_path('examples/greet.py')['mcp'].run('stdio')"),
    "cli": ("-c", "from millstream._cli import main; main()", "run", "examples/greet.py", "--transport", "stdio"),
}


@for_each("program", PROGRAMS.values(), ids=PROGRAMS)
def test_stdio_servers_import_no_http_server(program: tuple[str, ...]) -> None:
    loaded, printed = loaded_by(*program, given=HANDSHAKE)
    assert b'"serverInfo"' in printed
    assert not loaded & {"uvicorn", "starlette", "cryptography", "httptools", "websockets", "httpx2", "jsonschema_rs"}


def test_files_mention_no_machine_path_or_registry() -> None:
    hosts = [r"pypi\.(?:org|io)", r"pythonhosted\.", r"npmjs\.", r"deb\.debian\.", r"crates\.io"]
    paths = [rf"/{folder}/" for folder in ("work", "farm", "root", "tmp/lab", "tmp/bash_jobs")]
    forbidden = re.compile("|".join(hosts + paths))
    found: list[str] = []
    skipped = UNTRACKED | {path.name for pattern in (".venv-*", ".*_cache") for path in ROOT.glob(pattern)}
    tops = [path for path in ROOT.iterdir() if path.name not in skipped]
    for path in [*tops, *(below for top in tops for below in top.rglob("*"))]:
        inside = path.relative_to(ROOT)
        if skipped & set(inside.parts) or not path.is_file():
            continue
        try:
            text = path.read_text("utf-8")
        except UnicodeDecodeError:
            continue
        found += [f"{inside}:{number}" for number, line in enumerate(text.splitlines(), 1) if forbidden.search(line)]
    assert found == []


@for_each("folder", ["src", "tests"])
def test_citations_refer_to_repository_documents(folder: str) -> None:
    papers = ("DESIGN", "FACTS", "DEFECTS", "STYLE", "LAYOUT", "CONFORMANCE", "[Tt]he issue", "Issue")
    forbidden = re.compile(rf"\b(?:{'|'.join(papers)})(?![\w.-])|\b(?:[Dd]igest|[Dd]esign|[Ii]ssue) (?:§ ?)?\d")
    here = Path(__file__)
    texts = {path: path.read_text("utf-8") for path in sources(folder) if path != here}
    assert texts, f"{folder} has no file"
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path, text in texts.items()
        for number, line in enumerate(text.splitlines(), 1)
        if forbidden.search(line)
    ]
    assert found == []


def test_dependencies_have_security_floors() -> None:
    floors = dependencies()
    assert {name: bound for name, bound in floors.items() if ">=" not in bound} == {}
    assert floors.get("starlette", ">=1.3.1") == ">=1.3.1"
    assert {name: bound for name, bound in floors.items() if "<" in bound or "==" in bound} == {}


def test_all_extras_are_in_one() -> None:
    groups = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["optional-dependencies"]
    assert groups["all"] == [f"millstream[{','.join(sorted(groups.keys() - {'all'}))}]"]


def test_core_dependencies_are_imported() -> None:
    used = {name.split(".")[0] for path in sources("src") for name in imported(path)}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    assert {re.split(r"[>=<; ]", item)[0] for item in project["dependencies"]} - used <= {
        "python-dotenv",
        "docstring-parser",
        "prometheus-client",
        "uvloop",
    }


def dependencies() -> dict[str, str]:
    """What the package needs, extras included, and the bounds of each."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    groups = project["optional-dependencies"]
    extras: list[str] = [item for name, items in groups.items() if name != "all" for item in items]
    return dict(re.fullmatch(r"([\w-]+)(.*?)(?:;.*)?", item).groups() for item in project["dependencies"] + extras)


OUTBOUND = ("_http/client", "client", "_gateway", "extensions", "agent", "_cli", "_web/inspector.py", "_oauth.py")
"""Packages and modules that send requests."""
LINE_BREAKS = {
    "_http/client/request.py": "writes the heads of requests",
    "client/_oauth/loopback.py": "writes the page that ends a sign-in, whose head is constant",
    "extensions/_host.py": "writes constant headers of a response",
    "_web/inspector.py": "writes constant headers of responses",
    "_gateway/upstreams/links.py": "writes a constant header of responses",
    "_gateway/apis/request.py": "writes the boundaries of multipart bodies",
}
"""Module with CR LF in a literal, other than as an argument of a search -> the reason."""
_SEARCHES = {"strip", "rstrip", "partition", "split", "maketrans", "removesuffix"}
SENDERS = {
    "_http/client/pool.py", "_web/inspector.py", "_app/server_process/session_forwarder.py", "client/_endpoint.py",
    "hub/_client.py",
}  # fmt: skip
"""Modules that pass requests to a connection. All of them encode these with `encode_request`."""


def test_only_one_module_writes_the_heads_of_requests() -> None:
    found: set[str] = set()
    for path in sources("src"):
        name = path.relative_to(PACKAGE).as_posix()
        if not any(name == each or name.startswith(f"{each}/") for each in OUTBOUND):
            continue
        searched = {
            argument
            for node in nodes_of(path)
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in _SEARCHES
            for argument in node.args
        }
        for node in nodes_of(path):
            if isinstance(node, ast.Constant) and node not in searched:
                text = node.value.decode("latin-1") if isinstance(node.value, bytes) else node.value
                if isinstance(text, str) and "\r\n" in text:
                    found.add(name)
    assert found == set(LINE_BREAKS)


def test_connections_get_requests_from_that_module_only() -> None:
    senders: set[str] = set()
    for path in sources("src"):
        name = path.relative_to(PACKAGE).as_posix()
        for node in nodes_of(path):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "send"):
                continue
            # `ConnectionPool.send` takes one request, and `Endpoint.send` its parts.
            if len(node.args) == 1 and any(each.arg == "repeatable" for each in node.keywords):
                senders.add(name)
    assert senders == SENDERS
    for name in senders:
        assert "millstream._http.client.request.encode_request" in imported(PACKAGE / name), name
