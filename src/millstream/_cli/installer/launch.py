"""How an application reaches a server: a command to start, or a URL."""

import os
import re
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from urllib.parse import urlsplit

from msgspec import Struct

from millstream._app.server_process.errors import CommandError
from millstream._cli.uv import find_uv, with_packages
from millstream._http.client.url import parse
from millstream._http.hosts import is_loopback
from millstream.client._errors import TargetError
from millstream.client._targets import is_run_by_us

_UNFIT = re.compile(r"[^A-Za-z0-9_-]+")


class Launch(Struct, frozen=True, kw_only=True):
    """How to reach a server, with the details that any application needs."""

    command: str = ""
    args: tuple[str, ...] = ()
    env: Mapping[str, str] = {}
    url: str = ""
    """URL, instead of a command."""
    headers: Mapping[str, str] = {}

    def by_remote(self) -> "Launch":
        """Return a command that connects to the URL with mcp-remote, for applications that can only start programs."""
        args = ["-y", "mcp-remote", self.url]
        env: dict[str, str] = {}
        for number, (name, value) in enumerate(self.headers.items()):
            # Some applications don't quote arguments with spaces, so the value is passed as a variable.
            env[f"MCP_HEADER_{number}"] = value
            args += ["--header", f"{name}:${{MCP_HEADER_{number}}}"]
        where = parse(self.url)
        if not where.secure and not is_loopback(where.host):
            args.append("--allow-http")  # mcp-remote allows http only to this machine by default
        return Launch(command="npx", args=tuple(args), env=env)


def launch_of(
    target: str,
    *,
    env: Mapping[str, str],
    headers: Mapping[str, str],
    packages: Sequence[str] = (),
    editable: Sequence[str] = (),
) -> Launch:
    """Return how to reach a server in a file or at a URL, or a gateway to the servers that a file lists.

    Paths are absolute, because applications run in other folders.

    Raises:
        CommandError: The file doesn't exist or isn't a server, or the packages need uv, which isn't installed.
    """
    if "://" in target:
        try:
            url = parse(target)
        except TargetError as exc:
            raise CommandError(str(exc)) from exc
        if url.scheme not in ("http", "https"):
            raise CommandError("Applications can't use WebSockets.", fix="Use the server's http or https URL.")
        return Launch(url=str(url), headers=headers)
    source, colon, name = target.rpartition(":")
    if not (colon and source and name.isidentifier()):
        source, name = target, ""
    path = Path(source)
    if not path.is_file():
        fix = "Use a .py, .js, .json, or .toml file, or a URL like https://example.com/mcp."
        raise CommandError(f"There is no file {path}.", fix=fix)
    path = path.resolve()
    if packages or editable:
        words = with_packages(find_uv(), packages, editable) + _words(path, name, python="python")
    else:
        words = _words(path, name)
    return Launch(command=words[0], args=tuple(words[1:]), env=env)


def _words(path: Path, name: str, *, python: str = "") -> list[str]:
    if path.suffix in (".js", ".mjs", ".cjs"):
        return [shutil.which("node") or "node", str(path)]
    gateway = path.suffix in (".json", ".toml")
    if not gateway and path.suffix != ".py":
        raise CommandError(
            f"{path.name} is neither Python nor JavaScript, nor a list of servers.",
            fix="Use a .py, .js, .json, or .toml file, or a URL.",
        )
    if not gateway and not is_run_by_us(path.read_text("utf-8", "replace")):
        return [python or sys.executable, str(path)]
    program = Path(sys.executable).with_name("millstream.exe" if os.name == "nt" else "millstream")
    start = [str(program)] if program.is_file() and not python else [python or sys.executable, "-m", "millstream"]
    what = ["gateway", str(path)] if gateway else ["run", f"{path}:{name}" if name else str(path)]
    return [*start, *what, "--transport", "stdio"]


def hyphenate(name: str) -> str:
    """Return a server name that every application accepts, such as ``My-Shop`` for ``My Shop``."""
    return _UNFIT.sub("-", name).strip("-") or "server"


def name_of(target: str) -> str:
    """Return the default name of a server: the file, or the first part of the host."""
    if "://" in target:
        host = urlsplit(target).hostname or "server"
        parts = [part for part in host.split(".") if part not in ("www", "mcp", "api")]
        return parts[0] if parts and not host.replace(".", "").isdigit() else "server"
    return hyphenate(Path(target.rpartition(":")[0] if target.rpartition(":")[2].isidentifier() else target).stem)
