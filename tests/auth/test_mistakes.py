import re
from collections.abc import Callable
from typing import Any

import pytest

from cases import for_each
from millstream import Server, auth

ISSUER, AUDIENCE = "https://id.example.com", "https://mcp.example.com/mcp"
URL = "https://mcp.example.com"
anything: Any = auth
"""`auth` without type checks."""
PEOPLE = auth.login_provider(ISSUER, allow=["@example.com"], client_id="shop", client_secret="s" * 32)


def with_jwt(**more: Any) -> Any:
    """Call `auth.jwt` with valid arguments and these."""
    return anything.jwt(issuer=ISSUER, audience=AUDIENCE, jwks=f"{ISSUER}/keys", **more)


MISTAKES: dict[str, tuple[Callable[[], Any], str]] = {
    "jwt issure": (lambda: anything.jwt(issure=ISSUER), "auth.jwt has no option 'issure'; did you mean 'issuer'?"),
    "keys named_key": (
        lambda: anything.keys(named_key={}),
        "auth.keys has no option 'named_key'; did you mean 'named_keys'?",
    ),
    "oidc audiance": (
        lambda: anything.oidc(ISSUER, audiance=AUDIENCE),
        "auth.oidc has no option 'audiance'; did you mean 'audience'?",
    ),
    "introspected url": (lambda: anything.introspection(endpont=ISSUER), "did you mean 'endpoint'?"),
    "issuer user": (lambda: anything.issuer(URL, user=PEOPLE), "did you mean 'users'?"),
    "users files": (lambda: anything.users(files="users.json"), "auth.users has no option 'files'"),
    "upstream allowed": (lambda: anything.login_provider("google", allowed=["*"]), "did you mean 'allow'?"),
    "client redirect_uri": (lambda: anything.client("a", redirect_uri=["x"]), "did you mean 'redirect_uris'?"),
    "google scope": (
        lambda: anything.google(URL, allow=["*"], scope=["a"]),
        "auth.google has no option 'scope'; did you mean 'scopes'?",
    ),
    "github alow": (lambda: anything.github(URL, allow=["*"], regitration=True), "did you mean 'registration'?"),
    "jwt scopes": (lambda: with_jwt(scopes="read"), "scopes must be a list: scopes=['read']"),
    "jwt algorithms": (lambda: with_jwt(algorithms="RS256"), "algorithms must be a list: algorithms=['RS256']"),
    "jwt scope_includes": (
        lambda: with_jwt(scope_includes={"write": "read"}),
        "The scopes included in 'write' must be a list: scope_includes={'write': ['read']}",
    ),
    "jwt scope_includes list": (
        lambda: with_jwt(scope_includes=["read"]),
        "scope_includes must map scopes to the scopes that they include",
    ),
    "jwt scopes of numbers": (lambda: with_jwt(scopes=[1]), "scopes must be a list of strings, but 1 isn't a string."),
    "oidc algorithms": (
        lambda: anything.oidc(ISSUER, audience=AUDIENCE, algorithms="ES256"),
        "algorithms must be a list: algorithms=['ES256']",
    ),
    "oidc scopes": (
        lambda: anything.oidc(ISSUER, audience=AUDIENCE, scopes="a"),
        "scopes must be a list: scopes=['a']",
    ),
    "keys scopes": (lambda: anything.keys(named_keys={"ada": ("key", "read")}), "scopes must be a list: ['read']"),
    "issuer users": (lambda: anything.issuer(URL, users="users.json"), "users must be auth.users(file=…)"),
    "issuer clients": (lambda: anything.issuer(URL, users=PEOPLE, clients="desk"), "a list of auth.client(…)"),
    "issuer resources": (
        lambda: anything.issuer(URL, users=PEOPLE, resources=AUDIENCE),
        f"resources must be a list: resources=['{AUDIENCE}']",
    ),
    "issuer scopes": (lambda: anything.issuer(URL, users=PEOPLE, scopes="a"), "scopes must be a list: scopes=['a']"),
    "issuer scope_includes": (
        lambda: anything.issuer(URL, users=PEOPLE, scope_includes={"a": "b"}),
        "scope_includes={'a': ['b']}",
    ),
    "client redirect_uris": (
        lambda: anything.client("desk", redirect_uris="https://a.example/b"),
        "redirect_uris must be a list: redirect_uris=['https://a.example/b']",
    ),
    "client scopes": (
        lambda: anything.client("desk", secret="s" * 32, scopes="a"),
        "scopes must be a list: scopes=['a']",
    ),
    "upstream allow": (
        lambda: anything.login_provider("google", allow="*", client_id="a", client_secret="b"),
        "allow must be a list: allow=['*']",
    ),
    "upstream scopes": (
        lambda: anything.login_provider("google", allow={"@example.com": "a"}, client_id="a", client_secret="b"),
        "The scopes of '@example.com' must be a list: ['a']",
    ),
}


@for_each("name", MISTAKES)
def test_auth_mistakes_are_rejected_with_a_fix(name: str) -> None:
    make, said = MISTAKES[name]
    with pytest.raises(TypeError, match=re.escape(said)):
        make()


@for_each("kind", ["tool", "prompt", "resource"])
def test_scopes_as_one_string_are_rejected(kind: str) -> None:
    server: Any = Server("shop")
    given = {"resource": ("shop://a",)}.get(kind, ())
    with pytest.raises(TypeError, match="scopes"):

        @getattr(server, kind)(*given, scopes="orders:write")
        def order() -> str:
            """Order."""
            return ""


def test_issuers_can_be_dict_keys() -> None:
    issuer = auth.github("https://a.example", allow=["ada"], client_id="id", client_secret="s" * 32)
    assert {issuer: 1}[issuer] == 1
