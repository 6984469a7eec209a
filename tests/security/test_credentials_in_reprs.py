"""Credentials don't show in the `repr` of the values that hold them, which ends up in logs and tracebacks."""

import pkgutil
import re
from collections.abc import Iterator
from importlib import import_module
from typing import Any

import pytest
from msgspec import Struct

import millstream
from millstream import Settings
from millstream._app.server_process.worker_process import Hello
from millstream._gateway.credentials.source import LinkCaller
from millstream.agent._configuration import ServerConfig
from millstream.auth._authorization_server.grants import RefreshToken, SigningKey
from millstream.auth._authorization_server.users import StoredUser
from millstream.client import parse_url
from millstream.client._oauth import Registration, StoredCredentials, Tokens
from millstream.client._oauth.endpoints import TokenResponse
from millstream.client._targets import Remote
from millstream.client._transports import Options
from millstream.client._transports.stdio import Command
from millstream.extensions.events._webhook import DeliveryParams
from millstream.gateway import bearer, static_headers

SECRET = "hunter2-hunter2-hunter2-hunter2-hunter2"
NAMES = re.compile(
    r"(^|_)(token|secret|password|credentials?|(private|secret|proof|auth)_keys?|cookie|verifier|headers?|env)$"
)
HARMLESS = {
    "client._applications.ConfigurableApp": "the name of a member",
    "_http.client.connection.HttpReply": "headers of a response",
    "_http.client.pool.FetchedDocument": "headers of a response",
    "_protocol.metadata.LooseMeta": "a progress token",
    "_protocol.metadata.ParamHeader": "the name of a header",
    "_protocol.metadata.RequestMeta": "a progress token",
    "_protocol.notifications.ProgressNotificationParams": "a progress token",
    "_transports.usual.UsualMeta": "a progress token",
    "_stores.nats.link.StreamMessage": "headers of an entry",
    "client._requests.RawRequest": "arguments of a tool",
    "extensions._extension.HandlerMark": "the name of a header",
    "_gateway.options.credentials.BearerToken": "the name of a variable",
    "_gateway.options.credentials.Secret": "the name of a variable",
    "_gateway.options.credentials.StaticHeaders": "secrets, which show no value",
    "_gateway.upstreams.links.LinkKey": "a digest",
}
"""Types with such fields that aren't credentials."""


def subclasses(base: type) -> Iterator[type]:
    for each in type.__subclasses__(base):
        yield each
        if each is not type:
            yield from subclasses(each)


def shown_fields(kind: Any) -> list[str]:
    """Return the fields of text in the generated `repr` of a Struct or dataclass."""
    names: tuple[str, ...] = ()
    if "__struct_fields__" in dir(kind):
        names = kind.__struct_fields__ if kind.__repr__ is Struct.__repr__ else ()
    elif getattr(getattr(kind, "__dataclass_params__", None), "repr", False):
        names = tuple(field.name for field in kind.__dataclass_fields__.values() if field.repr)
    types: dict[str, str] = {}
    bases: list[Any] = list(reversed(kind.__mro__))
    for base in bases:
        types |= {str(name): str(text) for name, text in getattr(base, "__annotations__", {}).items()}
    return [name for name in names if re.search(r"\b(str|bytes|Raw)\b", types[name])]


def test_no_type_shows_fields_that_may_contain_credentials() -> None:
    for module in pkgutil.walk_packages(millstream.__path__, "millstream."):
        if not module.name.endswith("__main__"):
            import_module(module.name)
    kinds = {each for each in subclasses(object) if each.__module__.startswith("millstream.")}
    fields = {
        f"{kind.__module__}.{kind.__qualname__}".removeprefix("millstream."): shown_fields(kind) for kind in kinds
    }
    assert sum(map(bool, fields.values())) > 200
    assert {name for name, shown in fields.items() if any(map(NAMES.search, shown))} == set(HARMLESS)


@pytest.mark.parametrize(
    "value",
    [
        Settings(secret_key=SECRET),
        ServerConfig("https://example.com", headers={"Authorization": SECRET}),
        RefreshToken("grant", 1, SECRET),
        SigningKey("one", {"d": SECRET}, 0.0),
        StoredUser("ada", SECRET, 0.0),
        Hello(worker=1, workers=1, host="", port=0, listeners=[], run=1, key=SECRET),
        StoredCredentials(
            {"https://example.com": Registration("shop", SECRET)}, {"https://example.com": Tokens(SECRET)}
        ),
        TokenResponse(SECRET),
        Remote(parse_url("https://example.com/mcp"), {"authorization": SECRET}),
        Options(env={"API_KEY": SECRET}),
        Command(("uvx", "server"), {"API_KEY": SECRET}),
        DeliveryParams("https://example.com", secret=SECRET),
        LinkCaller(token=SECRET),
        bearer(SECRET),
        static_headers({"x-api-key": SECRET}),
    ],
    ids=lambda value: type(value).__name__,
)
def test_reprs_of_values_with_credentials_hide_them(value: object) -> None:
    assert type(value).__name__ in repr(value)
    assert SECRET not in f"{value!r} {value} {[value]} {ValueError(value)}"
