"""The reference lists the environment variables that the program reads."""

import ast
import re
from functools import cache
from typing import NamedTuple

import pytest

from millstream._config import _OTHER_NAMES, PREFIX
from millstream.agent._configuration import _AZURE, _OPENAI, _PLAIN, _SERVER
from millstream.auth._authorization_server.upstreams import KNOWN
from scripts.docs import ROOT

pytestmark = pytest.mark.check

SOURCE = ROOT / "src" / "millstream"
NONE: frozenset[str] = frozenset()
COMPUTED = {
    "_app/gateway_server.py": NONE,  # settings
    "_app/server_process/listen_sockets.py": {"LISTEN_PID", "LISTEN_FDS"},
    "_cli/accounts.py": NONE,  # a setting
    "_cli/dev.py": {"DISPLAY", "WAYLAND_DISPLAY", "BROWSER"},
    "_cli/serve.py": NONE,  # those of --env-file
    "auth/_authorization_server/upstreams.py": {
        f"{who.upper()}_CLIENT_{part}" for who in KNOWN for part in ("ID", "SECRET")
    },
    "client/_transports/stdio.py": NONE,  # those that a process inherits
    "compat/fastmcp/_auth.py": {"FASTMCP_HOST", "FASTMCP_PORT", "FASTMCP_LOG_LEVEL", "FASTMCP_DEBUG"},
    "_gateway/options/credentials.py": NONE,  # one that a configuration names
}
"""Module that computes names -> the variables."""
PASSED = {
    "_app/gateway_server.py": NONE,  # to a command
    "_app/server_process/worker_process.py": NONE,  # to a worker
    "_cli/chat/__init__.py": {
        name for family in (_PLAIN, _OPENAI, _AZURE, _SERVER) for name in (family.key, family.url)
    },
    "_cli/gateway.py": NONE,  # for ${NAME}
    "_cli/install.py": {"CODEX_HOME"},
    "_cli/record.py": NONE,  # to a command
    "_config.py": set(_OTHER_NAMES),
    "_http/client/url.py": {"HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"},
    "_server/calls/__init__.py": NONE,
    "_web/playground.py": NONE,  # as in _cli/chat
    "client/_endpoint.py": NONE,  # to redact them
    "client/_targets.py": NONE,  # for ${NAME}
    "client/_transports/stdio.py": NONE,  # to redact them
    "client/_transports/websocket.py": NONE,  # to redact them
    "_gateway/files/read.py": NONE,  # for ${NAME}
}
"""Module that passes all variables to a function -> those that the function reads without naming them in a literal."""
NOT_FOR_USERS = {
    "MILLSTREAM_PATH",  # a setting
    "PATH",
    "PYTEST_CURRENT_TEST",
    "TYPED_COMMAND",  # from the Makefile
    "_MILLSTREAM_WORKER",
}


class Reads(NamedTuple):
    """How the modules read variables."""

    names: set[str]
    computing: set[str]
    passing: set[str]


def is_environ(node: ast.AST) -> bool:
    return isinstance(node, ast.Attribute) and node.attr == "environ" and ast.unparse(node.value) == "os"


def name_in(name: ast.expr, tree: ast.Module) -> str | None:
    """Return the name of a variable that's a literal or a constant of the module."""
    if isinstance(name, ast.Constant) and isinstance(name.value, str):
        return name.value
    for line in tree.body:
        if isinstance(name, ast.Name) and isinstance(line, ast.Assign) and ast.unparse(line.targets[0]) == name.id:
            return name_in(line.value, tree)
    return None


@cache
def reads() -> Reads:
    """Return the variables with a constant name, the modules that compute names, and those that pass all of them."""
    found = Reads(set(), set(), set())
    for path in sorted(SOURCE.rglob("*.py")):
        module, tree = path.relative_to(SOURCE).as_posix(), ast.parse(path.read_text("utf-8"))
        known: set[ast.AST] = set()
        for node in ast.walk(tree):
            match node:
                case ast.Call(func=ast.Attribute(value=place, attr="get" | "pop" | "setdefault"), args=[name, *_]):
                    pass
                case ast.Subscript(value=place, slice=name):
                    pass
                case ast.Compare(left=name, ops=[ast.In() | ast.NotIn()], comparators=[place]):
                    pass
                case _:
                    continue
            text = name_in(name, tree)
            if is_environ(place):
                known.add(place)
                found.computing.update([] if text else [module])
                found.names.update([text] if text else [])
            elif isinstance(name, ast.Constant) and not isinstance(node, ast.Compare):
                found.names.update(re.findall("^[A-Z][A-Z0-9_]{3,}$", text or ""))  # of variables that were passed
        if any(is_environ(node) and node not in known for node in ast.walk(tree)):
            found.passing.add(module)
    return found


def test_modules_that_read_variables_by_a_computed_name_are_known() -> None:
    assert reads().computing == set(COMPUTED)
    assert reads().passing == set(PASSED)


def listed_in(page: str, section: str) -> set[str]:
    text = (ROOT / "docs/reference" / page).read_text("utf-8").partition(f"\n## {section}\n")[2]
    cells = re.findall(r"^\| (`.*?) \|", text.partition("\n## ")[0], re.MULTILINE)
    return {name for cell in cells for name in re.findall(r"`(\w+)`", cell)}


def test_variables_that_the_program_reads_are_listed() -> None:
    listed = listed_in("settings.md", "Other variables")
    used = reads().names.union(*COMPUTED.values(), *PASSED.values()) - NOT_FOR_USERS
    assert listed - used == {"SSL_CERT_FILE"}, "OpenSSL reads it"
    unlisted = used - listed - listed_in("agent.md", "Configuration")
    assert unlisted == set(), "Add them to a table of docs/reference/settings.md."
    assert {f"{PREFIX}HOST", f"{PREFIX}PORT"} <= used
