"""The supported applications: their configuration files, and the entries that tell them how to reach a server.

An entry starts a command, or names a URL. See the documentation linked at each application. Paths are per user, except
`project`, which is per folder.
"""

import json
import os
import re
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlsplit

from msgspec import Struct

from millstream._app.server_process import CommandError
from millstream._cli.serve import find_uv, with_packages
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
        raise CommandError(f"{path} is a folder." if path.is_dir() else f"There is no file {path}.", fix=fix)
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


class System(Struct, frozen=True, kw_only=True):
    """Properties of the machine that determine paths."""

    kind: str
    """``linux``, ``macos``, or ``windows``."""
    home: Path
    variables: Mapping[str, str] = {}

    def folder(self, *, linux: str, macos: str, windows: str) -> Path:
        """Return the folder of an application, below the system's location for settings."""
        if self.kind == "windows":
            return Path(self.variables.get("APPDATA") or self.home / "AppData" / "Roaming") / windows
        if self.kind == "macos":
            return self.home / macos
        return Path(self.variables.get("XDG_CONFIG_HOME") or self.home / ".config") / linux


def _command(name: str, launch: Launch) -> dict[str, Any]:
    entry: dict[str, Any] = {"command": launch.command, "args": list(launch.args)}
    return {**entry, "env": dict(launch.env)} if launch.env else entry


class ConfigurableApp(Struct, frozen=True, kw_only=True):
    """One application."""

    title: str
    place: Callable[[System], Path]
    """Its configuration file."""
    under: str = "mcpServers"
    """Member of its configuration that contains the servers."""
    project: str = ""
    """Configuration file of one folder, relative to it."""
    snippet: Callable[[str, str, dict[str, Any]], str] | None = None
    """Formats an entry for a file that isn't JSON, from `under`, the server's name, and the entry. The user adds it."""
    local: Callable[[str, Launch], dict[str, Any]] = _command
    """Creates the entry for a command, from the name of the server and the launch."""
    remote: Callable[[str, Launch], dict[str, Any]] | None = None
    """Creates the entry for a URL. None if the application can only start programs."""
    named: Callable[[str], str] = hyphenate
    """Converts the name of a server to the application's form."""
    afterwards: str
    """What the user has to do after installation."""

    def entry(self, name: str, launch: Launch) -> dict[str, Any]:
        """Return the entry of a server in the application's format."""
        if not launch.url:
            return self.local(name, launch)
        return self.remote(name, launch) if self.remote is not None else self.local(name, launch.by_remote())


def _typed_command(name: str, launch: Launch) -> dict[str, Any]:
    return {"type": "stdio", **_command(name, launch)}


def _url_as(
    member: str, *, kind: Mapping[str, str] | None = None, headers: str = "headers"
) -> Callable[[str, Launch], dict[str, Any]]:
    def write(name: str, launch: Launch) -> dict[str, Any]:
        entry: dict[str, Any] = {**(kind or {}), member: launch.url}
        return {**entry, headers: dict(launch.headers)} if launch.headers else entry

    return write


_GOOSE_SECONDS = 300


def _goose(name: str, launch: Launch) -> dict[str, Any]:
    kind, way = (
        ("streamable_http", {"uri": launch.url, "headers": dict(launch.headers)})
        if launch.url
        else ("stdio", {"cmd": launch.command, "args": list(launch.args), "envs": dict(launch.env)})
    )
    return {"name": name, "type": kind, "enabled": True, **way, "timeout": _GOOSE_SECONDS}


def _in_toml(under: str, name: str, entry: dict[str, Any]) -> str:
    def write(value: Any) -> str:
        if isinstance(value, dict):
            members = cast("dict[str, Any]", value).items()
            return f"{{ {', '.join(f'{write(member)} = {write(each)}' for member, each in members)} }}"
        return json.dumps(value, ensure_ascii=False)  # strings and arrays of strings are the same in TOML

    return "\n".join([f"[{under}.{name}]", *(f"{member} = {write(value)}" for member, value in entry.items())])


def _in_yaml(under: str, name: str, entry: dict[str, Any]) -> str:
    members = (f"    {member}: {json.dumps(value, ensure_ascii=False)}" for member, value in entry.items())
    return "\n".join([f"{under}:", f'  "{name}":', *members])


def _in_home(*parts: str) -> Callable[[System], Path]:
    return lambda system: system.home.joinpath(*parts)


def _in_settings(linux: str, macos: str, windows: str) -> Callable[[System], Path]:
    return lambda system: system.folder(linux=linux, macos=macos, windows=windows)


APPLICATIONS = {
    # https://modelcontextprotocol.io/docs/develop/connect-local-servers; URLs go through its Connectors, not this file
    "claude": ConfigurableApp(
        title="Claude Desktop",
        place=_in_settings(
            "Claude/claude_desktop_config.json",
            "Library/Application Support/Claude/claude_desktop_config.json",
            "Claude/claude_desktop_config.json",
        ),
        named=str,
        afterwards="Quit Claude Desktop and start it again.",
    ),
    # https://code.claude.com/docs/en/mcp
    "claude-code": ConfigurableApp(
        title="Claude Code",
        place=_in_home(".claude.json"),
        project=".mcp.json",
        local=_typed_command,
        remote=_url_as("url", kind={"type": "http"}),
        afterwards="Start Claude Code again, and type /mcp to see the server.",
    ),
    # https://cursor.com/docs/mcp
    "cursor": ConfigurableApp(
        title="Cursor",
        place=_in_home(".cursor", "mcp.json"),
        project=".cursor/mcp.json",
        local=_typed_command,
        remote=_url_as("url"),
        afterwards="Switch the server on in Cursor's settings, under MCP.",
    ),
    # https://code.visualstudio.com/docs/agents/reference/mcp-configuration
    "vscode": ConfigurableApp(
        title="Visual Studio Code",
        place=_in_settings(
            "Code/User/mcp.json", "Library/Application Support/Code/User/mcp.json", "Code/User/mcp.json"
        ),
        project=".vscode/mcp.json",
        under="servers",
        local=_typed_command,
        remote=_url_as("url", kind={"type": "http"}),
        named=str,
        afterwards="Start the server with the command MCP: List Servers.",
    ),
    # https://docs.devin.ai/desktop/cascade/mcp; its successor is below
    "windsurf": ConfigurableApp(
        title="Windsurf",
        place=_in_home(".codeium", "windsurf", "mcp_config.json"),
        remote=_url_as("serverUrl"),
        afterwards="Press Refresh in Cascade's list of MCP servers.",
    ),
    # https://docs.devin.ai/cli/extensibility/mcp/configuration; this file name since version 3000.3
    "devin": ConfigurableApp(
        title="Devin",
        place=lambda system: system.folder(linux="devin", macos=".config/devin", windows="devin") / "mcp_config.json",
        project=".devin/mcp_config.json",
        remote=_url_as("url", kind={"transport": "http"}),
        afterwards="Start a new session in Devin Desktop, or in the Devin CLI.",
    ),
    # https://zed.dev/docs/ai/mcp and https://zed.dev/docs/configuring-zed
    "zed": ConfigurableApp(
        title="Zed",
        place=lambda system: system.folder(linux="zed", macos=".config/zed", windows="Zed") / "settings.json",
        project=".zed/settings.json",
        under="context_servers",
        remote=_url_as("url"),
        afterwards="Zed reloads its settings. Its status is in Settings, AI, MCP Servers.",
    ),
    # https://goose-docs.ai/docs/guides/config-files
    "goose": ConfigurableApp(
        title="Goose",
        place=lambda system: (
            system.folder(linux="goose", macos=".config/goose", windows="Block/goose/config") / "config.yaml"
        ),
        under="extensions",
        snippet=_in_yaml,
        named=lambda name: hyphenate(name).lower(),
        local=_goose,
        remote=_goose,
        afterwards="Start a new Goose session.",
    ),
    # https://github.com/google-gemini/gemini-cli/blob/main/docs/tools/mcp-server.md
    "gemini": ConfigurableApp(
        title="Gemini CLI",
        place=_in_home(".gemini", "settings.json"),
        project=".gemini/settings.json",
        remote=_url_as("httpUrl"),
        afterwards="Start Gemini CLI again, and type /mcp to see the server.",
    ),
    # https://developers.openai.com/codex/mcp
    "codex": ConfigurableApp(
        title="Codex",
        place=lambda system: Path(system.variables.get("CODEX_HOME") or system.home / ".codex") / "config.toml",
        project=".codex/config.toml",
        under="mcp_servers",
        snippet=_in_toml,
        remote=_url_as("url", headers="http_headers"),
        afterwards="Start Codex again, and type /mcp to see the server.",
    ),
}
"""Applications by the value of ``--client``."""

LAUNCHING = frozenset({"args", "command", "env", "headers", "httpUrl", "serverUrl", "transport", "type", "url"})
"""Members that define how to reach a server. All others belong to the user, and are preserved."""

_URLS = ("url", "httpUrl", "serverUrl")


def merge_entries(old: Any, new: dict[str, Any]) -> dict[str, Any]:
    """Return the new entry, with the user's additions to the old one if both are for the same server.

    Old variables are preserved unless the new entry sets them. Nothing is preserved for a different server, because
    `trust`, headers, tokens, and variables were meant for the old one.
    """
    if not isinstance(old, Mapping):
        return new
    fields = cast("Mapping[str, Any]", old)
    if _server(fields) != _server(new):
        return new
    additions = {name: value for name, value in fields.items() if name not in LAUNCHING}
    variables = fields.get("env")
    if "command" in new and isinstance(variables, Mapping):
        additions["env"] = {**cast("Mapping[str, Any]", variables), **new.get("env", {})}
    return {**new, **additions}


def _server(entry: Mapping[str, Any]) -> object:
    """Return the identity of an entry's server: the origin of its URL, or the file that its command runs."""
    for name in _URLS:
        url = entry.get(name)
        if isinstance(url, str):
            parts = urlsplit(url)
            return parts.scheme, parts.netloc
    words = [str(each) for each in (entry.get("command"), *(entry.get("args") or ()))]
    if "mcp-remote" in words:
        return next((urlsplit(word)[:2] for word in words if "://" in word), None)
    files = [word for word in words[1:] if Path(_FILE.sub("", word)).suffix in (".py", ".js", ".mjs", ".cjs")]
    return _FILE.sub("", files[0]) if files else words


_FILE = re.compile(r":\w+$")
"""Object name after the path of a file."""
