"""Configuration files of a gateway: ``gateway.toml``, and the `mcpServers` files of other applications.

`load_file` reads either. Mistakes raise a `ConfigError` with the file, the line, and the allowed values. These files
start programs, so they must come from the operator, never over HTTP.
"""

import json
import logging
import os
import re
import shlex
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import cache, partial, reduce
from glob import escape
from inspect import Parameter, signature
from pathlib import Path
from types import GenericAlias, NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import msgspec
from msgspec import NODEFAULT, Struct, field, structs
from msgspec.structs import FieldInfo, fields

from millstream import Settings, auth
from millstream._protocol.errors import LocalError, MissingExtra, closest_name, suggest
from millstream._protocol.redaction import is_secret
from millstream.client import TargetError, parse_url
from millstream.client._targets import SERVER_TABLES, VARIABLE, as_text, as_texts, expand_variables
from millstream.files import EnvFileError, read_env_file
from millstream.gateway._credentials import Credentials
from millstream.gateway._jsonc import JsonSyntaxError
from millstream.gateway._jsonc import read as read_json
from millstream.gateway._policy import UpstreamPolicy
from millstream.gateway._results import Redactor
from millstream.gateway._sets import SetConfig
from millstream.gateway._upstream_config import UpstreamConfig
from millstream.protocol import is_array, is_object, members

MAX_FILE = 4 * 1024 * 1024
"""Maximum size of a file, in bytes."""
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_TOKEN = re.compile(
    r'''"""(?:[^"\\]++|\\.|"{1,2}+(?!"))*+"{3,5}|"(?:[^"\\\n]++|\\.)*+"|#[^\n]*'''
    r"""|'{3}(?:[^']++|'{1,2}+(?!'))*+'{3,5}|'[^'\n]*'|[\[\]{}\n]""",
    re.DOTALL,
)
"""A string, comment, bracket, or line break of a TOML document."""
_BRACED = re.compile(r"(?<!\$)\{env:(\w+)\}")
"""A variable in files of opencode."""
_BARE = re.compile(r"(?<!\S)\$([A-Z_][A-Z0-9_]*)(?!\S)")
"""A variable in files of Gemini CLI and Crush, as a whole word."""

logger = logging.getLogger("millstream.gateway")
KeyPath = tuple[str, ...]


class ConfigError(LocalError, ValueError):
    """A configuration file can't be used. The message contains the file, the line, and a replacement."""


class GatewayConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The content of a configuration file."""

    name: str = "gateway"
    """Name that clients show. With a single upstream, the default is its name."""
    version: str = ""
    instructions: str = ""
    """Instructions for the client's model on how to use the servers."""
    store: str = ""
    """Store URL for sessions, lists, and accepted definitions. By default, the `store` in `settings`, or memory://."""
    serve: tuple[str, ...] = ()
    """What to serve in addition to MCP, as a list of hub, rest, web, metrics, or all."""
    settings: dict[str, Any] = field(default_factory=dict[str, Any])
    """Any [server settings](settings.md), such as `auth_keys` or `tool_search`."""
    policy: UpstreamPolicy | None = None
    """Policy for all upstreams together. Its patterns match names with the prefix."""
    auth: tuple[Any, ...] = ()
    """Who can call the gateway: tables such as [auth.issuer](../guides/gateway.md#people-who-sign-in)."""
    upstreams: tuple[UpstreamConfig, ...] = ()
    sets: tuple[SetConfig, ...] = ()
    """Sets of items with addresses of their own, as [tables by name](../guides/sets.md)."""
    written: "ConfigValue | None" = None
    """The whole file."""
    files: tuple[Path, ...] = ()
    """Files beside it, with keys, users, and accepted definitions."""


_NAMES_OF_SETS = frozenset(("endpoints", "namespaces", "profiles", "toolsets", "virtual_servers"))
"""What other gateways call sets."""


class ConfigValue(Struct, frozen=True):
    """A value of a configuration file, and its place in the file."""

    path: Path
    line: Callable[[KeyPath], int]
    environ: Mapping[str, str] | None
    """Variables for ``${NAME}``, or None for a value without variables."""
    value: Any
    """The value as written in the file. Errors show it like this, because variables may be secrets."""
    where: KeyPath = ()
    files: list[Path] = []
    """Files that values name, in all parts of the file together."""

    def quote(self) -> str:
        """Return text that shows a wrong value in an error, without secrets."""
        if any(is_secret(each.replace("keys", "key")) for each in self.where):
            return f"another type ({type(self.value).__name__})"
        shown = self.value if isinstance(self.value, str) else json.dumps(self.value, default=str, ensure_ascii=False)
        return f"{shown!r:.60}" if shown is self.value else f"{shown:.60}"

    def error(self, what: str) -> ConfigError:
        """Return an error about the value."""
        name = f"{'.'.join(self.where)}: " if self.where else ""
        # An error that ends with a command stays as it is, so that the command can be copied.
        guide = f" {_SIGN_IN_GUIDE}" if self.where[:1] == ("auth",) and what.endswith(".") else ""
        return ConfigError(f"{self.path}, line {self.line(self.where)}: {name}{what}{guide}")

    def member(self, name: str) -> "ConfigValue":
        """Return a member of a table. Its value is None if it's missing."""
        return structs.replace(self, value=members(self.value).get(name), where=(*self.where, name))

    def table(self) -> "dict[str, ConfigValue]":
        """Return the members of a table.

        Raises:
            ConfigError: The value isn't a table.
        """
        if not is_object(self.value):
            kind = "a table of options" if self.path.suffix == ".toml" else 'an object such as {"name": {…}}'
            raise self.error(f"it must be {kind}, not {self.quote()}.")
        return {name: self.member(name) for name in self.value}

    def options(self, known: Mapping[str, FieldInfo]) -> "dict[str, ConfigValue]":
        """Return the members of a table after checking that all of them are options.

        Raises:
            ConfigError: The value isn't a table, or a member isn't an option.
        """
        table = self.table()
        for key, each in table.items():
            if key not in known:
                hint = suggest(key, tuple(known)) if closest_name(key, known) else f"use one of {', '.join(known)}."
                if len(self.where) < 2 and (key.startswith("auth") or (not self.where and key in _SIGN_IN)):
                    hint = f"callers' sign-in is configured in tables such as [auth.issuer]. {_SIGN_IN_GUIDE}"
                if self.where == ("settings",) and key != "auth" and key in GatewayConfig.__struct_fields__:
                    hint = f"write it above the first table{', or use --serve' if key == 'serve' else ''}."
                elif key in _COMMAND_OPTIONS:
                    hint = f"set it on the command line, with --{key}."
                elif self.where[:-1] == ("upstreams",) and key in ("document", "base_url", "operations"):
                    hint = f"write it under [{'.'.join(self.where)}.openapi]."
                elif self.where[:-1] == ("upstreams",) and key in UpstreamPolicy.__struct_fields__:
                    hint = f"write it under [{'.'.join(self.where)}.policy]."
                elif not self.where and key in _NAMES_OF_SETS:
                    hint = "write [sets.NAME], which is a choice of items with an address of its own."
                elif self.where != ("settings",) and key in Settings.__struct_fields__:
                    hint = "write it under [settings]."
                raise each.error(f"unknown option; {hint}")
        return table

    def read(self, known: Mapping[str, FieldInfo], **loaders: "Callable[[ConfigValue], Any]") -> dict[str, Any]:
        """Return the options of a table by the names of their fields.

        Args:
            known: The options.
            loaders: Functions that read options with another syntax.

        Raises:
            ConfigError: The table is invalid.
        """
        return {
            known[key].name: loaders[key](each) if key in loaders else each.convert(known[key].type)
            for key, each in self.options(known).items()
        }

    def expand(self) -> Any:
        """Return the value with environment variables in place of ``${NAME}``. See `expand_variables`.

        Raises:
            ConfigError: A variable isn't set.
        """
        value = self.value
        if isinstance(value, str) and self.environ is not None:
            try:
                return expand_variables(value, self.environ, self.path.parent)
            except ValueError as exc:
                raise self.error(str(exc)) from exc
        if is_array(value):
            return [structs.replace(self, value=each).expand() for each in value]
        return {name: each.expand() for name, each in self.table().items()} if is_object(value) else value

    def convert(self, kind: Any) -> Any:
        """Return the value converted to a type, with its variables expanded.

        Raises:
            ConfigError: It has the wrong type.
        """
        for part in _parts_of(kind) if is_object(self.value) else ():
            if isinstance(part, type) and issubclass(part, Struct):
                return self.load(part)
            if get_origin(part) in (dict, Mapping):
                return {name: each.convert(get_args(part)[1]) for name, each in self.table().items()}
        value = self.expand()
        try:
            converted = msgspec.convert(value, kind)
            if self.where[-1].startswith("redact_"):
                with suppress(MissingExtra):  # reported when the gateway starts
                    Redactor(converted)
        except msgspec.ValidationError:
            culprit = structs.replace(self, value=_find_culprit(self.value))
            raise self.error(f"it must be {_describe(kind)}, not {culprit.quote()}.") from None
        except ValueError as exc:
            raise self.error(str(exc)) from None
        return converted

    def load(self, kind: Any) -> Any:
        """Return a table as a Struct. Errors show the value, even if it's deeply nested.

        Raises:
            ConfigError: The table is invalid.
        """
        return self.call(kind, options_of(kind))

    def call(
        self, function: Callable[..., Any], known: Mapping[str, FieldInfo], **loaders: "Callable[[ConfigValue], Any]"
    ) -> Any:
        """Return the result of a function whose arguments are the options of a table. See `read`.

        Raises:
            ConfigError: The table is invalid.
        """
        values = self.read(known, **loaders)
        missing = [name for name, each in known.items() if each.required and each.name not in values]
        if missing:
            raise self.error(f"{missing[0]} is required.")
        try:
            return function(**values)
        except (TypeError, ValueError, AttributeError, LocalError) as exc:
            raise self.error(str(exc)) from exc


def read_file(path: Path) -> str:
    """Return the text of a configuration file.

    Raises:
        ConfigError: It can't be read.
    """
    try:
        if path.stat().st_size > MAX_FILE:
            raise ConfigError(f"{path} is larger than {MAX_FILE:,} bytes. Check that it's a configuration file.")
        return path.read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as exc:
        raise ConfigError(f"{path} can't be read: {getattr(exc, 'strerror', None) or exc}.") from exc


def load_file(
    path: str | Path,
    environ: Mapping[str, str] | None = None,
    *,
    text: str | None = None,
) -> GatewayConfig:
    """Read a ``gateway.toml``, or the file of another application, such as one with `mcpServers`.

    Args:
        path: Path of the file. JSON may contain comments.
        environ: Variables for ``${NAME}``, by default those of this process.
        text: Text of the file, if it has been read.

    Raises:
        ConfigError: The file can't be read, or contains a mistake.

    Example:
        ``load_file("gateway.toml").upstreams``
    """
    path = Path(path)
    text = read_file(path) if text is None else text
    return parse(path, text, os.environ if environ is None else environ)


def parse(path: Path, text: str, environ: Mapping[str, str]) -> GatewayConfig:
    """Return the configuration in the text of a file. See `load_file`.

    Raises:
        ConfigError: The text contains a mistake. Its cause is `UnsetVariable` if only a variable is missing.
    """
    if path.suffix in (".json", ".jsonc") or (path.suffix != ".toml" and text.lstrip()[:1] in ("{", "/")):
        return _load_servers(_json_source(path, text, environ))
    return _load_gateway(path, text, environ)


def _json_source(path: Path, text: str, environ: Mapping[str, str]) -> ConfigValue:
    try:
        root = read_json(text)
    except JsonSyntaxError as exc:
        raise ConfigError(f"{path}: {exc}") from exc

    def line(where: KeyPath) -> int:
        node = root
        for name in where:
            node = node.members.get(name, node)
        return text.count("\n", 0, node.name_start) + 1

    return ConfigValue(path, line, environ, root.value)


def _toml_line(text: str, values: Any, where: KeyPath) -> int:
    """Return the line of a value in a TOML document. Values in inline tables are on the line of the table."""
    while not contains(values, where):
        where = where[:-1]
    start = next((at for at, _, source in toml_statements(text) if contains(tomllib.loads(source), where)), len(text))
    return text.count("\n", 0, start) + 1


def toml_statements(text: str) -> Iterator[tuple[int, int, str]]:
    """Yield start, end, and parsable text of each table header, key, comment, and blank line of a TOML document.

    Args:
        text: A valid document.
    """
    header, depth, start = "", 0, 0
    for token in _TOKEN.finditer(text + "\n"):
        depth += (token[0] in "[{") - (token[0] in "]}")
        if token[0] == "\n" and not depth:
            statement = text[start : token.end()]
            header = statement if statement.lstrip()[:1] == "[" else header
            yield start, token.end(), statement if header is statement else header + statement
            start = token.end()


def contains(values: Any, where: KeyPath) -> bool:
    """Return whether a value has a member at a path: ``contains({"a": {"b": 1}}, ("a", "b"))``."""
    for name in where:
        if not is_object(values) or name not in values:
            return False
        values = values[name]
    return True


# gateway.toml

_SET_BY_CODE = ("shared", "text", "written", "files")
"""Fields of policies, secrets, and configurations that files can't set."""
_SIGN_IN = ("users", "keys", "issuer", "oidc", "jwt", "introspection")
"""Tables of ``[auth]`` that newcomers write elsewhere."""
_SIGN_IN_GUIDE = 'See "People who sign in" in the guide "Gateway".'
_COMMAND_OPTIONS = ("host", "port", "transport", "workers")
"""Options of `millstream gateway` that newcomers write into the file."""
_FIELDS_OF_CODE = ("name", "target", "policy", "auth", "openapi")
"""Fields of `UpstreamConfig` with another syntax in files."""


class _Target(Struct, frozen=True, kw_only=True):
    """Fields of an upstream that exist only in files."""

    url: str = ""
    """URL of an MCP server."""
    command: str | tuple[str, ...] = ""
    """Program that serves MCP on standard input and output."""
    args: tuple[str, ...] = ()
    """Additional arguments of the command."""
    openapi: str | dict[str, Any] = ""
    """URL or file of an OpenAPI document instead, or a table with `document` and the operations to offer."""
    disabled: bool = False
    """Whether to ignore the upstream."""
    auth: dict[str, Any] | None = None
    policy: UpstreamPolicy | None = None


@cache
def options_of(kind: Any) -> Mapping[str, FieldInfo]:
    """Return the options of a table that becomes a Struct, by name."""
    return {each.encode_name: each for each in fields(kind) if each.name not in _SET_BY_CODE}


@cache
def upstream_options() -> Mapping[str, FieldInfo]:
    """Return the options of an upstream in ``gateway.toml`` by name."""
    common = {name: each for name, each in options_of(UpstreamConfig).items() if name not in _FIELDS_OF_CODE}
    return {**options_of(_Target), **common}


def _load_gateway(path: Path, text: str, environ: Mapping[str, str]) -> GatewayConfig:
    try:
        written = tomllib.loads(text)
    except tomllib.TOMLDecodeError as exc:
        hint = (
            "Name a JSON file NAME.json." if text.lstrip()[:1] == "{" else 'Write key = "text" under [upstreams.NAME].'
        )
        at = re.search(r"at line (\d+)", str(exc))
        line = text.split("\n")[int(at[1]) - 1] if at else ""
        if "\\" in line:
            hint = r"Write a path in single quotes: 'C:\servers\shop.py'."
        elif re.search(r"=\s*(?:True|False|None|null)\b", line):
            hint = "Write true or false in lower case, and leave out options without a value."
        elif "Cannot " in str(exc):
            hint = "Write each table and each key once."
        if path.suffix in (".yaml", ".yml"):
            hint = "A gateway doesn't read YAML. List the servers in a JSON file, under mcpServers."
        raise ConfigError(f"{path} isn't valid TOML: {exc}. {hint}") from exc
    except RecursionError:
        raise ConfigError(f"{path} has values that are nested too deeply.") from None
    root = ConfigValue(path, partial(_toml_line, text, written), environ, written, files=[])
    if written.keys() & {"mcp_servers", "mcpServers"} and "upstreams" not in written:
        return _load_servers(root)
    values = root.read(
        options_of(GatewayConfig),
        settings=lambda each: each.read(options_of(Settings)),
        policy=_load_policy,
        auth=_load_auth,
        upstreams=ConfigValue.table,
        sets=_load_sets,
    )
    shared, upstreams = values.get("policy"), values.pop("upstreams", {})
    configs = [config for name, each in upstreams.items() if (config := _load_upstream(name, each, shared)) is not None]
    _check_upstreams(root.member("upstreams"), configs)
    files = [*root.files, *(Path(each.policy.pins) for each in configs if each.policy and each.policy.pins)]
    if keys := values.get("settings", {}).get("auth_keys"):
        files.append(Path(keys))
    return GatewayConfig(**values, upstreams=tuple(configs), written=root, files=tuple(dict.fromkeys(files)))


def _load_upstream(name: str, entry: ConfigValue, shared: UpstreamPolicy | None) -> UpstreamConfig | None:
    values = entry.read(upstream_options(), policy=_load_policy, auth=_load_credentials, command=_load_command)
    if values.pop("disabled", False):
        return None
    policy: UpstreamPolicy = values.pop("policy", None) or UpstreamPolicy()
    if values.get("trust") == "pin" and not policy.pins:
        policy = structs.replace(policy, pins=str(entry.path.with_suffix(".lock")))
    if shared is not None:
        policy = structs.replace(policy, shared=shared)
    target = _pop_target(entry, values)
    config = UpstreamConfig(**values, name=name, target=target, policy=policy if policy != UpstreamPolicy() else None)
    folder = entry.path.absolute().parent / Path(config.cwd or "").expanduser()
    placed = structs.replace(config, cwd=str(folder))
    return config if placed.find_ignored_option()[0] else placed


def _load_sets(value: ConfigValue) -> tuple[SetConfig, ...]:
    known = {name: each for name, each in options_of(SetConfig).items() if name != "name"}
    return tuple(each.call(partial(SetConfig, name=name), known) for name, each in value.table().items())


def _load_policy(value: ConfigValue) -> Any:
    """Return a policy, whose regular expressions may contain dollar signs."""
    return structs.replace(value, environ=None).load(UpstreamPolicy)


def _pop_target(entry: ConfigValue, values: dict[str, Any]) -> Any:
    """Remove the fields that locate an upstream, and return its target, or set its `openapi`."""
    url, command, args, api = (values.pop(key, None) for key in ("url", "command", "args", "openapi"))
    present = [key for key, value in (("url", url), ("command", command), ("openapi", api)) if value]
    if len(present) != 1:
        what = f"has {' and '.join(present)}" if present else "has no target"
        raise entry.error(f"the upstream {what}: use exactly one of url, command, and openapi.")
    if args and not command:
        raise entry.member("args").error(f"args requires a command, but this upstream has {present[0]}.")
    if api:
        values["openapi"] = _load_openapi(entry.member("openapi"))
        return None
    if url:
        _check_url(entry.member("url"), url)
        return url
    if isinstance(command, str) and not args:
        return command
    return [*([command] if isinstance(command, str) else command or ()), *(args or ())]


def _check_url(written: ConfigValue, url: str) -> None:
    """Raise a `ConfigError` unless a string is a URL, because the client would run any other string as a command."""
    try:
        parse_url(url)
    except TargetError:
        raise written.error(
            "it must be a URL such as https://example.com/mcp, without a user name or password."
        ) from None


def _load_command(command: ConfigValue) -> Any:
    """Return a command. Its variables are expanded after splitting it, so that no value becomes several words."""
    if not isinstance(command.value, str):
        return command.convert(str | tuple[str, ...])
    hidden = VARIABLE.sub(lambda found: f"\0{found[0].encode().hex()}\0", command.value)
    if hidden == command.value:
        return hidden
    try:
        words = shlex.split(hidden, posix=os.name != "nt")
    except ValueError as exc:
        raise command.error(f"the command can't be parsed: {exc}.") from exc
    words = [re.sub("\0([0-9a-f]+)\0", lambda found: bytes.fromhex(found[1]).decode(), each) for each in words]
    expanded: list[str] = structs.replace(command, value=words).expand()
    return expanded[0] if len(expanded) == 1 and len(expanded[0].split()) <= 1 else expanded


def _load_openapi(value: ConfigValue) -> Any:
    from millstream.gateway._openapi_tools import OpenApi  # noqa: PLC0415  few gateways have an API

    api = (value if is_object(value.value) else structs.replace(value, value={"document": value.value})).load(OpenApi)
    if "://" not in str(api.document):
        api = structs.replace(api, document=str(value.path.parent / str(api.document)))
    return api


def _load_credentials(value: ConfigValue) -> Any:
    kinds = {each.__struct_config__.tag: each for each in get_args(Credentials)}
    if isinstance(value.value, str):
        example = '{ kind = "bearer", env = "TOKEN" }'
        raise value.error(f"it must be a table such as {example}, not {value.quote()}.")
    rest = {key: each.value for key, each in value.table().items()}
    name = str(rest.pop("kind", ""))
    if name not in kinds:
        what = f"{name!r} isn't a kind of credentials" if name else "it's missing"
        raise value.member("kind").error(f"{what}; {suggest(name, tuple(kinds))}")
    return structs.replace(value, value=rest).load(kinds[name])


def _check_upstreams(table: ConfigValue, configs: list[UpstreamConfig]) -> None:
    """Check each upstream, and that no two have the same prefix."""
    hosts: dict[str, str] = {}
    for config in configs:
        entry = table.member(config.name)
        option, problem = config.find_ignored_option()
        if option:
            raise entry.member(option).error(problem)
        try:
            config.check()
        except ValueError as exc:
            raise entry.error(str(exc)) from exc
        first = hosts.setdefault(config.names.host, config.name)
        if first != config.name:
            prefix = config.names.prefix
            raise entry.member("prefix").error(
                f"the upstream {first!r} already has the prefix {prefix!r}. Give one of them another prefix."
            )


# Sign-in, in the words of `millstream.auth`: ``[auth.oidc]`` takes the arguments of ``auth.oidc(…)``, and so on

_AUTH_METHODS = ("issuer", "keys", "oidc", "jwt", "introspection")
"""Functions of `millstream.auth` that are tables of ``[auth]``."""
_LOGINS = ("users", "login_provider", "identity_provider")
"""Functions that are tables of ``[auth.issuer]``, for `users`."""


def _load_auth(value: ConfigValue) -> tuple[Any, ...]:
    """Return the auth methods in the `[auth]` table.

    Raises:
        ConfigError: An option is unknown or has an invalid value.
    """
    table = value.table()
    for name, each in table.items():
        if name not in _AUTH_METHODS:
            raise each.error(f"unknown option; {suggest(name, _AUTH_METHODS)}")
    if not table:
        raise value.error(f"it has no way to sign in; use {', '.join(_AUTH_METHODS)}.")
    return tuple(_load_issuer(each) if name == "issuer" else _call_auth(each, name) for name, each in table.items())


def _load_issuer(value: ConfigValue) -> Any:
    """Return an authorization server. In a file, each way to sign in is a separate option."""

    def make_issuer(**options: Any) -> Any:
        users = [each for name in _LOGINS for each in options.pop(name, ())]
        if not users:
            raise ValueError("users, login_provider, or identity_provider is required.")
        return auth.issuer(users=users, **options)

    known = _arguments_of("issuer") | {name: FieldInfo(name, name, Any, ()) for name in _LOGINS}
    loaders = {name: partial(_call_for_each, name=name) for name in _LOGINS}
    return value.call(make_issuer, known, clients=partial(_call_for_each, name="client"), **loaders)


def _call_for_each(value: ConfigValue, name: str) -> list[Any]:
    """Call a function of `millstream.auth` for an option that is one table or a list of them."""
    tables = value.value if is_array(value.value) else [value.value]
    return [_call_auth(structs.replace(value, value=each), name) for each in tables]


def _call_auth(value: ConfigValue, name: str) -> Any:
    """Call a function of `millstream.auth` with a table's options, or with the text of its only file."""
    known = _arguments_of(name)
    if isinstance(value.value, str) and "file" in known:
        value = structs.replace(value, value={"file": value.value})
    return value.call(getattr(auth, name), known, file=_file_path)


@cache
def _arguments_of(name: str) -> dict[str, FieldInfo]:
    """Return the options of a table that are arguments of a function of `millstream.auth`, by name."""
    return {
        key: FieldInfo(key, key, _file_type(each.annotation), NODEFAULT if each.default is Parameter.empty else None)
        for key, each in signature(getattr(auth, name)).parameters.items()
        if each.kind is not Parameter.VAR_POSITIONAL and (key != "provider" or name in _LOGINS)
    }


def _file_type(kind: Any) -> Any:
    """Return the type in a file for an argument of this type. Every collection of strings is a list there."""
    origin, parts = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        kinds = [_file_type(each) for each in parts if get_origin(each) not in (list, set, frozenset)]
        return reduce(lambda one, other: one | other, kinds)
    if origin is tuple:
        return GenericAlias(tuple, tuple(map(_file_type, parts)))
    return GenericAlias(dict, (str, _file_type(parts[1]))) if origin is Mapping else kind


def _file_path(value: ConfigValue) -> str:
    if not isinstance(value.value, str):
        raise value.error(f"it must be the path of a file, not {value.quote()}.")
    value.files.append(path := value.path.resolve().parent / value.expand())
    return str(path)


# mcpServers


_Texts = tuple[str, ...] | None
_Scalars = dict[str, str | bool | int | float | None] | None
_URLS = ("url", "httpUrl", "serverUrl")
_MEMBERS = frozenset((
    *_URLS, "args", "bearer_token_env_var", "command", "cwd", "disabled", "disabledTools", "enabled", "env", "envFile",
    "env_http_headers", "env_vars", "excludeTools", "headers", "includeTools", "path", "source", "type",
))  # fmt: skip
"""Known members of a server's entry. Others are ignored with a warning."""
_OTHER_NAMES = {
    "environment": "env",  # opencode
    "http_headers": "headers",  # Codex, and below
    "enabled_tools": "includeTools",
    "disabled_tools": "excludeTools",
    "workingDirectory": "cwd",  # JetBrains
}


def _find_servers(root: ConfigValue) -> ConfigValue | None:
    """Return the table of servers. In the files of opencode and Crush, and VS Code's settings, it's called `mcp`."""
    found = members(root.value)
    name = next((name for name in SERVER_TABLES if name in found), "")
    if name or "mcp" not in found:
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
    for name, usual in _OTHER_NAMES.items():
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

    url_name = next((name for name in _URLS if entry.value.get(name)), "")
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
        tuple(escape(tool.partition("(")[0]) for tool in read(name, _Texts) or ())
        for name in ("includeTools", "excludeTools", "disabledTools")
    )
    if allow or excluded or disabled:
        options["policy"] = UpstreamPolicy(allow=allow and (*allow, "*://*"), deny=excluded + disabled)
    if url_name:
        url = read(url_name, str)
        _check_url(entry.member(url_name), url)
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


def _load_servers(root: ConfigValue) -> GatewayConfig:
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
            unknown = [key for key in entry.value if key not in _MEMBERS]
            config = _load_server(entry, unknown, name=name, prefix=prefix)
            _check_upstreams(servers, [*configs, config])
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


def _find_culprit(value: Any) -> Any:
    """Return the first element of a list that isn't a string, or else the value itself."""
    return next((each for each in value if not isinstance(each, str)), value) if is_array(value) else value


def _describe(kind: Any) -> str:
    """Describe a type for an error message."""
    origin, parts = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return str(parts[1].description)
    if origin is Literal:
        return f"one of {', '.join(parts)}"
    if origin in (Union, UnionType):
        return " or ".join(_describe(each) for each in parts if each is not NoneType)
    if origin is tuple and get_origin(parts[0]) is Literal:
        return f"a list with some of {', '.join(get_args(parts[0]))}"
    if parts[1:] == (str,):
        return "a table of strings"
    if origin is dict and get_args(parts[1]):
        return f"a table with {_describe(parts[1])} for each name"
    if origin is tuple and parts[-1] is not ...:
        return f"a list of {' and '.join(map(_describe, parts))}"
    return _DESCRIPTIONS.get(origin or kind, "a table")


_DESCRIPTIONS = {
    bool: "true or false",
    dict: "a table",
    float: "a number",
    int: "a whole number",
    str: "a string",
    tuple: 'a list such as ["a", "b"]',
}


def _parts_of(kind: Any) -> tuple[Any, ...]:
    """Return the types in a union, or the type itself."""
    return get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)
