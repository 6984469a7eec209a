"""The `mcpServers` files of other applications, which a gateway reads like its own."""

import json
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from msgspec import structs

from millstream._gateway.files.values import ConfigError, ConfigValue, GatewayConfig, check_upstreams, check_url
from millstream._gateway.options.policy import UpstreamPolicy
from millstream._gateway.options.upstream import UpstreamConfig
from millstream._suggestions import closest_name
from millstream.client._applications import MEMBERS, OTHER_NAMES, SERVER_TABLES, URLS
from millstream.client._targets import as_text, as_texts
from millstream.files import EnvFileError, read_env_file
from millstream.protocol import is_array, is_object, members

_BRACED = re.compile(r"(?<!\$)\{env:(\w+)\}")
"""A variable in files of opencode."""
_BARE = re.compile(r"(?<!\S)\$([A-Z_][A-Z0-9_]*)(?!\S)")
"""A variable in files of Gemini CLI and Crush, as a whole word."""
_KINDS = frozenset({"command", "http", "local", "remote", "sse", "stdio", "streamablehttp", "websocket", "ws"})
"""Values of `type` and `transport` in lower case, without `_SEPARATORS`."""
_SEPARATORS = dict.fromkeys(map(ord, " +-_"))
_Texts = tuple[str, ...] | None
_Scalars = dict[str, str | bool | int | float | None] | None

logger = logging.getLogger("millstream.gateway")


def load_servers(root: ConfigValue) -> GatewayConfig:
    """Return the configuration in a file of another application. Servers with a mistake are logged, and left out.

    Raises:
        ConfigError: It has no list of servers, or each server has a mistake.
    """
    servers = _find_servers(root)
    if servers is None:
        raise root.error("the file has neither mcpServers nor servers. List the MCP servers under one of them.")
    configs: list[UpstreamConfig] = []
    ignored: dict[str, None] = {}
    mistakes: list[ConfigError] = []
    unnamed = 0
    allowed, excluded = (members(root.member("mcp").value).get(key) for key in ("allowed", "excluded"))  # Gemini CLI
    for name, written in servers.table().items():
        if (
            written.member("disabled").convert(bool | None)
            or written.member("enabled").convert(bool | None) is False
            or (is_array(allowed) and name not in allowed)
            or (is_array(excluded) and name in excluded)
        ):
            continue  # its variables needn't be set
        prefix = re.sub(r"[^A-Za-z0-9_-]+", "-", name).strip("-")
        if not prefix:
            unnamed += 1
            prefix = "server" if unnamed == 1 else f"server-{unnamed}"
        try:
            entry = _normalize(written, has_braces=servers.where == ("mcp",))
            unknown = [key for key in entry.value if key not in MEMBERS]
            config = _load_server(entry, unknown, name=name, prefix=prefix)
            check_upstreams(servers, [*configs, config])
        except ConfigError as exc:
            mistakes.append(exc)
            continue
        configs.append(config)
        ignored |= dict.fromkeys(unknown)
    if mistakes and not configs:
        raise mistakes[0]
    for mistake in mistakes:
        logger.error("A server isn't offered, because its entry has a mistake: %s", mistake)
    if ignored:
        logger.warning("%s: these options have no effect in a gateway: %s", root.path, ", ".join(ignored))
    return GatewayConfig(upstreams=tuple(configs))


def _find_servers(root: ConfigValue) -> ConfigValue | None:
    """Return the table of servers. In the files of opencode and Crush, and VS Code's settings, it's called `mcp`."""
    found = members(root.value)
    name = next((name for name in SERVER_TABLES if name in found), "")
    if name != "mcp":
        return root.member(name) if name else None
    table = root.member("mcp")
    inner = members(table.value).get("servers")
    return table.member("servers") if is_object(inner) and not inner.keys() & {"command", "url", "type"} else table


def _normalize(entry: ConfigValue, *, has_braces: bool) -> ConfigValue:
    """Return an entry with the usual names, and with variables as ``${NAME}``.

    Args:
        has_braces: Whether variables are written ``{env:NAME}``, as in opencode.
    """
    value = {name: each.value for name, each in entry.table().items() if each.value is not None}
    if has_braces:
        text = json.dumps(value)
        if "{file:" in text:
            raise entry.error("{file:…} isn't read in a gateway. Set a variable, and write {env:NAME}.")
        value = json.loads(_BRACED.sub(r"${\1}", text))
    command = value.get("command")
    if is_object(command):  # older files of Zed
        inner = {name: each for name, each in command.items() if each is not None}
        value |= {**inner, "command": command.get("path")}
    for name, usual in OTHER_NAMES.items():
        if name in value and usual not in value:
            value[usual] = value.pop(name)
    _normalize_terminal_values(entry, value, has_commands=has_braces)
    names = structs.replace(entry, environ=None)  # keep the names of variables as they're written
    for name in _find_passed_variables(names.member("env_vars"), entry.environ or {}):
        value["env"] = {name: f"${{{name}}}", **members(value.get("env"))}
    headers: dict[str, str] = names.member("env_http_headers").convert(dict[str, str] | None) or {}
    for name, each in headers.items():
        value["headers"] = {name: f"${{{each}}}", **members(value.get("headers"))}
    if token := names.member("bearer_token_env_var").convert(str | None):
        value["headers"] = {"Authorization": f"Bearer ${{{token}}}", **members(value.get("headers"))}
    return structs.replace(entry, value=value)


def _find_passed_variables(value: ConfigValue, environ: Mapping[str, str]) -> Iterator[str]:
    """Yield the names of the variables to pass on that are set. Codex also writes them as tables with their source.

    Raises:
        ConfigError: The value isn't a list of names or tables.
    """
    for each in value.convert(tuple[str | dict[str, str], ...] | None) or ():
        name, source = (each, "local") if isinstance(each, str) else (each.get("name", ""), each.get("source", "local"))
        if not name:
            raise value.error("a table needs the name of a variable.")
        if source == "local" and name in environ:
            yield name


def _normalize_terminal_values(entry: ConfigValue, value: dict[str, Any], *, has_commands: bool) -> None:
    """Normalize members that terminal agents spell differently: tools, and variables in `env` and `headers`."""
    if is_array(tools := value.get("tools")) and "*" not in tools:  # Copilot CLI
        value.setdefault("includeTools", value.pop("tools"))
    for name in ("env", "headers"):
        for key, each in members(value.get(name)).items():
            if isinstance(each, str):
                if has_commands and "$(" in each:  # Crush
                    raise entry.error(f"{name}.{key}: a gateway doesn't run $(…). Set a variable, and write ${{NAME}}.")
                value[name] = {**value[name], key: _BARE.sub(r"${\1}", each)}


def _load_server(entry: ConfigValue, unknown: Sequence[str], **options: Any) -> UpstreamConfig:
    """Return a normalized entry as an upstream.

    Members that its kind of server doesn't need aren't read, so that their variables needn't be set.

    Args:
        unknown: Names of its members that aren't known.
        options: Other options of the upstream.
    """

    def read(name: str, kind: Any) -> Any:
        return entry.member(name).convert(kind)

    for name in ("type", "transport"):
        kind = read(name, str | None)
        if kind and kind.lower().translate(_SEPARATORS) not in _KINDS:
            why = f"{kind!r} isn't a kind of server. Write stdio for a command, or http for a url."
            raise entry.member(name).error(why)
    url_name = next((name for name in URLS if entry.value.get(name)), "")
    command = read("command", str | _Texts)
    if bool(url_name) == bool(command):
        likely = ((key, closest_name(key, ("command", "url"))) for key in unknown)
        hint = next((f" (did you mean {near} instead of {key}?)" for key, near in likely if near), "")
        if "settings" in unknown and not command:
            raise entry.error("a Zed extension starts this server. Write its command, or set enabled to false.")
        raise entry.error(
            f"a server needs either a command or a url, but this one has {'both' if command else 'neither'}{hint}."
        )
    # These lists are about tools only. Gemini also accepts names with arguments: `search(query)`.
    allow, excluded, disabled = (
        tuple(tool.partition("(")[0] for tool in read(name, _Texts) or ())
        for name in ("includeTools", "excludeTools", "disabledTools")
    )
    if allow or excluded or disabled:
        options["policy"] = UpstreamPolicy(allow=allow and (*allow, "*://*"), deny=excluded + disabled)
    if url_name:
        url = read(url_name, str)
        check_url(entry.member(url_name), url)
        return UpstreamConfig(target=url, headers=as_texts(read("headers", _Scalars) or {}), **options)
    words = [command] if isinstance(command, str) else command
    args = read("args", tuple[str | bool | int | float, ...] | None) or ()
    variables, file = as_texts(read("env", _Scalars) or {}), read("envFile", str | None)
    if file:
        try:
            variables = read_env_file(entry.path.resolve().parent / Path(file).expanduser()) | variables
        except EnvFileError as exc:
            raise entry.member("envFile").error(str(exc)) from exc
    return UpstreamConfig(target=[*words, *map(as_text, args)], env=variables, cwd=read("cwd", str | None), **options)
