"""Values in the configuration files of a gateway, with their places in the file, which errors show."""

import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import msgspec
from msgspec import Struct, field, structs
from msgspec.structs import FieldInfo, fields

from millstream import Settings
from millstream._gateway.options.credentials import Secret
from millstream._gateway.options.policy import UpstreamPolicy
from millstream._gateway.options.sets import SetConfig
from millstream._gateway.options.upstream import UpstreamConfig
from millstream._gateway.rules.results import Redactor
from millstream._protocol.errors import LocalError, MissingExtra
from millstream._protocol.redaction import is_secret
from millstream._suggestions import suggest
from millstream.client import TargetError, parse_url
from millstream.client._targets import expand_variables
from millstream.protocol import is_array, is_object, members

KeyPath = tuple[str, ...]

_SET_BY_CODE = ("shared", "text", "written", "files")
"""Fields of policies, secrets, and configurations that files can't set."""
_SIGN_IN = ("users", "keys", "issuer", "oidc", "jwt", "introspection")
"""Tables of ``[auth]`` that newcomers write elsewhere."""
_SIGN_IN_GUIDE = 'See "People who sign in" in the guide "Gateway".'
_COMMAND_OPTIONS = ("host", "port", "transport", "workers")
"""Options of `millstream gateway` that newcomers write into the file."""
_NAMES_OF_SETS = frozenset(("endpoints", "namespaces", "profiles", "toolsets", "virtual_servers"))
"""What other gateways call sets."""


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
            if self.where in (("upstreams",), ("sets",)) and self.path.suffix == ".toml":
                kind = f"tables such as [{self.where[0]}.NAME]"
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
                hint = suggest(key, tuple(known))
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
                    raise each.error("a choice of items with an address of its own is a set here. Write [sets.NAME].")
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
        found = self.call(kind, options_of(kind))
        return (
            structs.replace(found, file=self.place(found.file)) if isinstance(found, Secret) and found.file else found
        )

    def place(self, path: str) -> str:
        """Return the absolute path of a file that's relative to the folder of the configuration file.

        Links in the folder's name are kept, because they may lead to another folder after an update.

        Raises:
            ConfigError: The path begins with the name of an unknown user.
        """
        try:
            return str(self.path.absolute().parent / Path(path).expanduser())
        except RuntimeError as exc:
            raise self.error(f"{path} has no folder: {exc}") from None

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


@cache
def options_of(kind: Any) -> Mapping[str, FieldInfo]:
    """Return the options of a table that becomes a Struct, by name."""
    return {each.encode_name: each for each in fields(kind) if each.name not in _SET_BY_CODE}


def check_url(written: ConfigValue, url: str) -> None:
    """Raise a `ConfigError` unless a string is a URL, because the client would run any other string as a command."""
    try:
        parse_url(url)
    except TargetError:
        raise written.error(
            "it must be a URL such as https://example.com/mcp, without a user name or password."
        ) from None


def check_upstreams(table: ConfigValue, configs: list[UpstreamConfig]) -> None:
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
