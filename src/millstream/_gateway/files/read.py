"""Configuration files of a gateway: ``gateway.toml``, and in `mcp_servers.py` the files of other applications.

`load_file` reads either. Mistakes raise a `ConfigError` with the file, the line, and the allowed values. These files
start programs, so they must come from the operator, never over HTTP.
"""

import os
import re
import shlex
import tomllib
from collections.abc import Collection, Iterable, Iterator, Mapping
from functools import cache, partial, reduce
from inspect import Parameter, signature
from pathlib import Path
from types import GenericAlias, UnionType
from typing import Any, Union, get_args, get_origin

from msgspec import NODEFAULT, Struct, structs
from msgspec.structs import FieldInfo

from millstream import Settings, auth
from millstream._gateway.files.mcp_servers import load_servers
from millstream._gateway.files.values import (
    ConfigError,
    ConfigValue,
    GatewayConfig,
    KeyPath,
    check_upstreams,
    check_url,
    options_of,
)
from millstream._gateway.options.credentials import Credentials
from millstream._gateway.options.policy import UpstreamPolicy
from millstream._gateway.options.sets import SetConfig
from millstream._gateway.options.upstream import UpstreamConfig
from millstream._jsonc import JsonSyntaxError
from millstream._jsonc import read as read_json
from millstream._suggestions import suggest
from millstream.client._targets import VARIABLE
from millstream.protocol import is_array, is_object

MAX_FILE = 4 * 1024 * 1024
"""Maximum size of a file, in bytes."""
_TOKEN = re.compile(
    r'''"""(?:[^"\\]++|\\.|"{1,2}+(?!"))*+"{3,5}|"(?:[^"\\\n]++|\\.)*+"|#[^\n]*'''
    r"""|'{3}(?:[^']++|'{1,2}+(?!'))*+'{3,5}|'[^'\n]*'|[\[\]{}\n]""",
    re.DOTALL,
)
"""A string, comment, bracket, or line break of a TOML document."""
_FIELDS_OF_CODE = ("name", "target", "policy", "auth", "openapi")
"""Fields of `UpstreamConfig` with another syntax in files."""


def read_file(path: Path) -> str:
    """Return the text of a configuration file.

    Raises:
        ConfigError: It can't be read.
    """
    try:
        about = path.stat()
        if about.st_size > MAX_FILE:
            raise ConfigError(f"{path} is larger than {MAX_FILE:,} bytes. Check that it's a configuration file.")
        if os.name == "posix" and about.st_mode & 0o002:
            raise ConfigError(f"All users on this machine can write to {path}. Run: chmod o-w {path}")
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
        return load_servers(_json_source(path, text, environ))
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
        return load_servers(root)
    values = root.read(
        options_of(GatewayConfig),
        settings=_load_settings,
        policy=_load_policy,
        auth=_load_auth,
        upstreams=ConfigValue.table,
        sets=_load_sets,
    )
    shared, upstreams = values.get("policy"), values.pop("upstreams", {})
    _check_upstreams_of_sets(root.member("sets"), values.get("sets", ()), upstreams)
    configs = [config for name, each in upstreams.items() if (config := _load_upstream(name, each, shared)) is not None]
    check_upstreams(root.member("upstreams"), configs)
    files = [*root.files, *(Path(each.policy.pins) for each in configs if each.policy and each.policy.pins)]
    return GatewayConfig(**values, upstreams=tuple(configs), written=root, files=tuple(dict.fromkeys(files)))


def _load_upstream(name: str, entry: ConfigValue, shared: UpstreamPolicy | None) -> UpstreamConfig | None:
    values = entry.read(upstream_options(), policy=_load_policy, auth=_load_credentials, command=_load_command)
    if values.pop("disabled", False):
        return None
    policy: UpstreamPolicy = values.pop("policy", None) or UpstreamPolicy()
    if policy.pins or values.get("trust") == "pin":
        policy = structs.replace(policy, pins=entry.place(policy.pins or entry.path.with_suffix(".lock").name))
    if shared is not None:
        policy = structs.replace(policy, shared=shared)
    target = _pop_target(entry, values)
    config = UpstreamConfig(**values, name=name, target=target, policy=policy if policy != UpstreamPolicy() else None)
    placed = structs.replace(config, cwd=entry.place(config.cwd or ""))
    return config if placed.find_ignored_option()[0] else placed


def _load_sets(value: ConfigValue) -> tuple[SetConfig, ...]:
    known = {name: each for name, each in options_of(SetConfig).items() if name != "name"}
    return tuple(each.call(partial(SetConfig, name=name), known) for name, each in value.table().items())


def _check_upstreams_of_sets(written: ConfigValue, sets: Iterable[SetConfig], upstreams: Collection[str]) -> None:
    """Raise a `ConfigError` for the first upstream of a set that isn't there."""
    for each in sets:
        for name in each.upstreams:
            if name not in upstreams and not re.search("[*?]", name):
                hint = suggest(name, tuple(upstreams))
                raise written.member(each.name).member("upstreams").error(f"no upstream is named {name!r}; {hint}")


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
        check_url(entry.member("url"), url)
        return url
    if isinstance(command, str) and not args:
        return command
    return [*([command] if isinstance(command, str) else command or ()), *(args or ())]


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
    from millstream._gateway.options.api import OpenApi  # noqa: PLC0415  few gateways have an API

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
    return value.call(getattr(auth, name), known, file=_watched_path)


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


def _load_settings(value: ConfigValue) -> dict[str, Any]:
    files = dict.fromkeys(("tls_cert", "tls_key", "audit_log", "log_file"), _file_path)
    return value.read(options_of(Settings), auth_keys=_watched_path, **files)


def _watched_path(value: ConfigValue) -> str:
    if path := _file_path(value):
        value.files.append(Path(path))
    return path


def _file_path(value: ConfigValue) -> str:
    """Return a path that's relative to the folder of the configuration, wherever the gateway starts."""
    if not isinstance(value.value, str):
        raise value.error(f"it must be the path of a file, not {value.quote()}.")
    path = value.expand()
    return path and value.place(path)
