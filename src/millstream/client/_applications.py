"""How other applications configure MCP servers: their files, the tables of servers, and the members of an entry.

See the documentation linked at each application. Paths are per user, except `project`, which is per folder.
"""

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlsplit

from msgspec import Struct

from millstream._confidential import Confidential
from millstream._http.client.url import parse_url
from millstream._http.hosts import is_loopback

Entry = dict[str, Any]
"""A server's entry in an application's configuration."""
_UNFIT = re.compile(r"[^A-Za-z0-9_-]+")


class Launch(Confidential, Struct, frozen=True, kw_only=True):
    """How to reach a server, with the details that any application needs."""

    command: str = ""
    args: tuple[str, ...] = ()
    env: Mapping[str, str] = {}
    url: str = ""
    """The URL, if there's no command."""
    headers: Mapping[str, str] = {}

    def by_remote(self) -> "Launch":
        """Return a command that connects to the URL with mcp-remote, for applications that can only start programs."""
        args = ["-y", "mcp-remote", self.url]
        env: dict[str, str] = {}
        for number, (name, value) in enumerate(self.headers.items()):
            # Some applications don't quote arguments with spaces, so the value is passed as a variable.
            env[f"MCP_HEADER_{number}"] = value
            args += ["--header", f"{name}:${{MCP_HEADER_{number}}}"]
        where = parse_url(self.url)
        if not where.secure and not is_loopback(where.host):
            args.append("--allow-http")  # mcp-remote allows http only to this machine by default
        return Launch(command="npx", args=tuple(args), env=env)


def hyphenate(name: str) -> str:
    """Return a server name that most applications accept, such as ``My-Shop`` for ``My Shop``."""
    return _UNFIT.sub("-", name).strip("-") or "server"


class System(Struct, frozen=True, kw_only=True):
    """Properties of the machine that determine paths."""

    kind: str
    """``linux``, ``macos``, or ``windows``."""
    home: Path
    variables: Mapping[str, str] = {}

    @property
    def settings(self) -> Path:
        """The folder for the settings of applications."""
        if self.kind == "windows":
            return Path(self.variables.get("APPDATA") or self.home / "AppData" / "Roaming")
        return (
            self.home if self.kind == "macos" else Path(self.variables.get("XDG_CONFIG_HOME") or self.home / ".config")
        )


class ConfigurableApp(Struct, frozen=True, kw_only=True):
    """An application that `millstream install` can configure."""

    title: str
    paths: tuple[str, ...]
    """The configuration file: one path below the home folder, or three below `System.settings`, by `_SYSTEMS`."""
    folder_variable: str = ""
    """Environment variable for a folder that replaces the one below the home folder."""
    under: str = "mcpServers"
    """Member of its configuration that contains the servers."""
    project: str = ""
    """Configuration file of one folder, relative to it."""
    snippet: Callable[[str, str, Entry], str] | None = None
    """Formats an entry for a file that isn't JSON, from `under`, the server's name, and the entry. The user adds it."""
    typed: bool = False
    """Whether the entry for a command has a type."""
    url: str = ""
    """Member of the entry for a URL. Empty if the application can only start programs."""
    url_type: Mapping[str, str] = {}
    """Member of that entry with the kind of connection, if there is one."""
    headers: str = "headers"
    """Member of the entry that holds the HTTP headers."""
    write: Callable[[str, Launch], Entry] | None = None
    """Creates an entry in another form, from the server's name and the launch."""
    named: Callable[[str], str] = hyphenate
    """Converts the name of a server to the application's form."""
    afterwards: str
    """What the user has to do after installation."""

    def place(self, system: System) -> Path:
        """Return the path of its configuration file."""
        path, *others = self.paths
        if others:
            return system.settings / self.paths[_SYSTEMS.index(system.kind)]
        folder = system.variables.get(self.folder_variable)
        return Path(folder, Path(path).name) if folder else system.home / path

    def entry(self, name: str, launch: Launch) -> Entry:
        """Return the entry of a server in the application's format."""
        if self.write is not None:
            return self.write(name, launch)
        if launch.url and self.url:
            return {**self.url_type, self.url: launch.url, **({self.headers: launch.headers} if launch.headers else {})}
        if launch.url:
            launch = launch.by_remote()
        entry: Entry = {
            "command": launch.command,
            "args": list(launch.args),
            **({"env": launch.env} if launch.env else {}),
        }
        return {"type": "stdio", **entry} if self.typed else entry


_SYSTEMS = ("linux", "macos", "windows")
_GOOSE_SECONDS = 300


def _goose(name: str, launch: Launch) -> Entry:
    kind, way = (
        ("streamable_http", {"uri": launch.url, "headers": dict(launch.headers)})
        if launch.url
        else ("stdio", {"cmd": launch.command, "args": list(launch.args), "envs": dict(launch.env)})
    )
    return {"name": name, "type": kind, "enabled": True, **way, "timeout": _GOOSE_SECONDS}


def _in_toml(under: str, name: str, entry: Entry) -> str:
    def write(value: Any) -> str:
        if isinstance(value, dict):
            members = cast("dict[str, Any]", value).items()
            return f"{{ {', '.join(f'{write(member)} = {write(each)}' for member, each in members)} }}"
        return json.dumps(value, ensure_ascii=False)  # strings and arrays of strings are the same in TOML

    return "\n".join([f"[{under}.{name}]", *(f"{member} = {write(value)}" for member, value in entry.items())])


def _in_yaml(under: str, name: str, entry: Entry) -> str:
    members = (f"    {member}: {json.dumps(value, ensure_ascii=False)}" for member, value in entry.items())
    return "\n".join([f"{under}:", f'  "{name}":', *members])


APPLICATIONS = {
    # https://modelcontextprotocol.io/docs/develop/connect-local-servers; URLs go through its Connectors, not this file
    "claude": ConfigurableApp(
        title="Claude Desktop",
        paths=(
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
        paths=(".claude.json",),
        project=".mcp.json",
        typed=True,
        url="url",
        url_type={"type": "http"},
        afterwards="Start Claude Code again, and type /mcp to see the server.",
    ),
    # https://cursor.com/docs/mcp
    "cursor": ConfigurableApp(
        title="Cursor",
        paths=(".cursor/mcp.json",),
        project=".cursor/mcp.json",
        typed=True,
        url="url",
        afterwards="Switch the server on in Cursor's settings, under MCP.",
    ),
    # https://code.visualstudio.com/docs/agents/reference/mcp-configuration
    "vscode": ConfigurableApp(
        title="Visual Studio Code",
        paths=("Code/User/mcp.json", "Library/Application Support/Code/User/mcp.json", "Code/User/mcp.json"),
        project=".vscode/mcp.json",
        under="servers",
        typed=True,
        url="url",
        url_type={"type": "http"},
        named=str,
        afterwards="Start the server with the command MCP: List Servers.",
    ),
    # https://docs.devin.ai/desktop/cascade/mcp; its successor is below
    "windsurf": ConfigurableApp(
        title="Windsurf",
        paths=(".codeium/windsurf/mcp_config.json",),
        url="serverUrl",
        afterwards="Press Refresh in Cascade's list of MCP servers.",
    ),
    # https://docs.devin.ai/cli/extensibility/mcp/configuration; this file name since version 3000.3
    "devin": ConfigurableApp(
        title="Devin",
        paths=("devin/mcp_config.json", ".config/devin/mcp_config.json", "devin/mcp_config.json"),
        project=".devin/mcp_config.json",
        url="url",
        url_type={"transport": "http"},
        afterwards="Start a new session in Devin Desktop, or in the Devin CLI.",
    ),
    # https://zed.dev/docs/ai/mcp and https://zed.dev/docs/configuring-zed
    "zed": ConfigurableApp(
        title="Zed",
        paths=("zed/settings.json", ".config/zed/settings.json", "Zed/settings.json"),
        project=".zed/settings.json",
        under="context_servers",
        url="url",
        afterwards="Zed reloads its settings. Its status is in Settings, AI, MCP Servers.",
    ),
    # https://goose-docs.ai/docs/guides/config-files
    "goose": ConfigurableApp(
        title="Goose",
        paths=("goose/config.yaml", ".config/goose/config.yaml", "Block/goose/config/config.yaml"),
        under="extensions",
        snippet=_in_yaml,
        named=lambda name: hyphenate(name).lower(),
        write=_goose,
        afterwards="Start a new Goose session.",
    ),
    # https://github.com/google-gemini/gemini-cli/blob/main/docs/tools/mcp-server.md
    "gemini": ConfigurableApp(
        title="Gemini CLI",
        paths=(".gemini/settings.json",),
        project=".gemini/settings.json",
        url="httpUrl",
        afterwards="Start Gemini CLI again, and type /mcp to see the server.",
    ),
    # https://developers.openai.com/codex/mcp
    "codex": ConfigurableApp(
        title="Codex",
        paths=(".codex/config.toml",),
        folder_variable="CODEX_HOME",
        project=".codex/config.toml",
        under="mcp_servers",
        snippet=_in_toml,
        url="url",
        headers="http_headers",
        afterwards="Start Codex again, and type /mcp to see the server.",
    ),
}
"""Applications by the value of ``--client`` of ``millstream install``."""

SERVER_TABLES = (
    *dict.fromkeys(each.under for each in APPLICATIONS.values() if each.snippet is not _in_yaml),
    "amp.mcpServers",
    "mcp",  # opencode, Crush, and VS Code's settings
)
"""Members that list servers in files. One of the first is used if there are several. YAML isn't read."""
URLS = tuple(dict.fromkeys(each.url for each in APPLICATIONS.values() if each.url))
"""Members of an entry that contain its URL."""
_LAUNCHING = frozenset({*URLS, "args", "command", "env", "headers", "transport", "type"})
"""Members that define how to reach a server. All others belong to the user, and are preserved."""
MEMBERS = _LAUNCHING - {"transport"} | {
    "bearer_token_env_var", "cwd", "disabled", "disabledTools", "enabled", "envFile", "env_http_headers", "env_vars",
    "excludeTools", "includeTools", "path", "source",
}  # fmt: skip
"""Members that a gateway knows. Others are ignored with a warning."""
OTHER_NAMES = {
    "environment": "env",  # opencode
    "http_headers": "headers",  # Codex, and below
    "enabled_tools": "includeTools",
    "disabled_tools": "excludeTools",
    "workingDirectory": "cwd",  # JetBrains
}
"""Other names of members."""


def merge_entries(old: Any, new: Entry) -> Entry:
    """Return the new entry, with the user's additions to the old one if both are for the same server.

    Old variables are preserved unless the new entry sets them. Nothing is preserved for a different server, because
    `trust`, headers, tokens, and variables were meant for the old one.
    """
    if not isinstance(old, Mapping):
        return new
    fields = cast("Mapping[str, Any]", old)
    if _server(fields) != _server(new):
        return new
    additions = {name: value for name, value in fields.items() if name not in _LAUNCHING}
    variables = fields.get("env")
    if "command" in new and isinstance(variables, Mapping):
        additions["env"] = {**cast("Mapping[str, Any]", variables), **new.get("env", {})}
    return {**new, **additions}


def _server(entry: Mapping[str, Any]) -> object:
    """Return the identity of an entry's server: the origin of its URL, or the file that its command runs."""
    for name in URLS:
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
"""Matches an object name after the path of a file."""
