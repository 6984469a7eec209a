import time
from base64 import b64encode
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from joserfc.jwk import ECKey

from backend_stores import MemoryStore as ServerStore
from cases import for_each
from issuer_world import KEYS, OTHER, Issuer, craft_token, run_issuer, sign_with_public_key, token
from issuing_world import BACK, RESOURCE, STORE_KINDS, URL, Browser, Desk, KnownUsers, claims_of, desk_on
from issuing_world import OTHER as ELSEWHERE
from millstream import auth
from millstream._oauth import JWT_BEARER
from millstream._protocol.principal import EVERYTHING
from millstream._stores.store import Store

SECRET = "s" * 32
CLIENT = auth.client("desk", secret=SECRET, scopes=["orders:read", "orders:write"])
BASIC = "Basic " + b64encode(f"desk:{SECRET}".encode()).decode()
ROOT = "/.well-known/oauth-authorization-server"


class World:
    """A provider, and an authorization server that accepts its grants."""

    def __init__(self, provider: Issuer, desk: Desk) -> None:
        self.provider = provider
        self.desk = desk

    def said(self, **changes: Any) -> dict[str, Any]:
        """Return the claims of a valid grant with changes; None removes a claim."""
        now = int(time.time())
        good = {"iss": self.provider.url, "aud": URL, "sub": "ada", "client_id": "desk", "iat": now, "exp": now + 300,
                "jti": f"{time.time_ns()}", "resource": RESOURCE, "scope": "orders:read orders:write"}  # fmt: skip
        return {name: value for name, value in {**good, **changes}.items() if value is not None}

    def grant(self, *, header: Any = None, **changes: Any) -> str:
        """Return a valid grant with changes."""
        return token(self.said(**changes), **{"typ": "oauth-id-jag+jwt", **(header or {})})

    async def bring(self, assertion: str, **more: Any) -> Any:
        """Exchange a grant as the client, and return the reply."""
        form = {"grant_type": JWT_BEARER, "assertion": assertion}
        headers = {"authorization": BASIC, **more.pop("headers", {})}
        return await self.desk.post("/token", {**form, **more}, **headers)


@asynccontextmanager
async def world(store: Store | None = None, *, scopes: Any = ("orders:read",), **options: Any) -> AsyncIterator[World]:
    """Yield a provider and a server."""
    async with run_issuer() as provider:
        given = {"clients": [CLIENT], **options}
        ways = [KnownUsers(), auth.identity_provider(provider.url, scopes=scopes)]
        yield World(provider, Desk(store or ServerStore(), people=ways, **given))


async def test_identity_grants_are_exchanged_for_tokens_with_allowed_scopes(every_store: Store) -> None:
    async with world(every_store) as there:
        reply = await there.bring(there.grant(name="Ada"))
        assert (reply.status, reply.headers["cache-control"]) == (200, "no-store"), reply.text
        assert set(reply.message) == {"access_token", "token_type", "expires_in", "scope"}
        claims = claims_of(reply.message["access_token"])
        assert (claims["aud"], claims["scope"], claims["client_id"]) == (RESOURCE, "orders:read", "desk")
        assert (claims["sub"], claims["name"]) == (f"{there.provider.url}#ada", "Ada")
        found = await there.desk.who(reply.message["access_token"])
        assert found is not None
        assert (found.principal.subject, found.principal.client) == (f"{there.provider.url}#ada", "desk")
        assert there.desk.running.holds(found.principal.id)


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "another issuer": ({"aud": "https://other.example"}, "another authorization server"),
    "a prefix of our name": ({"aud": URL + "/"}, "another authorization server"),
    "two audiences": ({"aud": [URL, "https://other.example"]}, "another authorization server"),
    "no audience": ({"aud": None}, "another authorization server"),
    "the token endpoint": ({"aud": URL + "/token"}, "another authorization server"),
    "another client": ({"client_id": "other"}, "another client"),
    "no client": ({"client_id": None}, "another client"),
    "a list of clients": ({"client_id": ["desk"]}, "another client"),
    "no end": ({"exp": None}, "no validity period"),
    "no beginning": ({"iat": None}, "no validity period"),
    "an end in words": ({"exp": "soon"}, "no validity period"),
    "an end that is true": ({"exp": True}, "no validity period"),
    "over": ({"iat": 1000, "exp": 1300}, "has expired"),
    "not valid yet": ({"iat": 9e12, "exp": 9e12 + 1}, "isn't valid yet"),
    "not yet": ({"nbf": 9e12}, "isn't valid yet"),
    "a beginning in words": ({"nbf": "now"}, "isn't valid yet"),
    "for an hour": ({"exp": lambda: time.time() + 3600}, "exceeds ten minutes"),
    "for an hour, which is almost over": (
        {"iat": lambda: time.time() - 3300, "exp": lambda: time.time() + 300},
        "exceeds ten minutes",
    ),
    "no id": ({"jti": None}, "no jti"),
    "an id that is a number": ({"jti": 7}, "no jti"),
    "an empty id": ({"jti": ""}, "no jti"),
    "nobody": ({"sub": None}, "has no subject"),
    "an empty name": ({"sub": ""}, "has no subject"),
    "a name with a line end": ({"sub": "ada\r\nbob"}, "has no subject"),
    "a very long name": ({"sub": "a" * 256}, "has no subject"),
    "of a tenant": ({"tenant": "acme"}, "tenant"),
    "bound to a certificate": ({"cnf": {"x5t#S256": "x"}}, "bound to a key"),
    "bound to a key that nobody shows": ({"cnf": {"jkt": "x" * 43}}, "bound to a key"),
    "scopes in a list": ({"scope": ["orders:read"]}, "scope must be a string"),
    "resources that are numbers": ({"resource": [7]}, "scope must be a string"),
    "another issuer's": ({"iss": "https://evil.example"}, "doesn't accept grants from this identity provider"),
    "no issuer": ({"iss": None}, "doesn't accept grants from this identity provider"),
    "a list of issuers": ({"iss": ["https://evil.example"]}, "doesn't accept grants from this identity provider"),
    "an ID token": ({"header": {"typ": "JWT"}}, "of the type oauth-id-jag"),
    "an access token": ({"header": {"typ": "at+jwt"}}, "of the type oauth-id-jag"),
    "of no type": ({"header": {"typ": None}}, "of the type oauth-id-jag"),
    "of an unknown key": ({"header": {"kid": "new"}}, "by an unknown key"),
    "of somebody else's key": ({"header": {"key": OTHER, "kid": "es"}}, "signature is invalid"),
}


@for_each("kind", REFUSED)
async def test_invalid_identity_grants_are_rejected_with_a_reason(kind: str) -> None:
    given, words = REFUSED[kind]
    changes = {name: value() if callable(value) else value for name, value in given.items()}
    async with world() as there:
        reply = await there.bring(there.grant(**changes))
        assert (reply.status, reply.error) == (400, "invalid_grant")
        assert words in reply.message["error_description"]
        assert (await there.bring(there.grant())).status == 200


@for_each("assertion", ["", "x", "a.b.c", "." * 40, "\0", "é.é.é"])
async def test_malformed_grants_are_rejected(assertion: str) -> None:
    async with world() as there:
        assert (await there.bring(assertion)).error == ("invalid_grant" if assertion else "invalid_request")


async def test_forged_grants_are_rejected() -> None:
    async with world() as there:
        head = {"typ": "oauth-id-jag+jwt", "kid": "rs"}
        pem = KEYS["RS256"].as_pem(private=False)
        own = ECKey.generate_key("P-256", {"kid": "es"})
        forged = [
            craft_token({**head, "alg": "none"}, there.said()),
            sign_with_public_key(pem, **head),
            craft_token({**head, "alg": "RS256", "crit": ["x"], "x": 1}, there.said()),
            there.grant(header={"key": own, "jwk": own.as_dict(private=False)}),
            there.grant(header={"key": own, "jku": "https://evil.example/keys"}),
        ]
        for each in forged:
            assert (await there.bring(each)).error == "invalid_grant"


async def test_common_signature_algorithms_are_accepted() -> None:
    async with world() as there:
        for name in KEYS:
            assert (await there.bring(there.grant(header={"alg": name}))).status == 200, name


@pytest.mark.parametrize("kind", STORE_KINDS)
async def test_grants_are_accepted_once_across_workers(kind: str) -> None:
    """RFC 7523 §5.2."""
    async with run_issuer() as provider:
        ways = [KnownUsers(), auth.identity_provider(provider.url, scopes=["orders:read"])]
        async with desk_on(kind, people=ways, clients=[CLIENT]) as desk:
            there = World(provider, desk)
            grant = there.grant()
            assert (await there.bring(grant, scope="no:such")).error == "invalid_scope"
            assert (await there.bring(grant, resource=ELSEWHERE)).error == "invalid_target"
            statuses = [(await there.bring(grant)).status for _ in range(8)]
            assert statuses == [200] + [400] * 7


@for_each(("allowed", "granted", "asked", "given"), [
    (["orders:read"], "orders:read orders:write", "", "orders:read"),
    ([EVERYTHING], "orders:read orders:write", "", "orders:read orders:write"),
    ([EVERYTHING], "orders:read", "orders:read orders:write", "orders:read"),
    ([EVERYTHING], "orders:read orders:write", "orders:write", "orders:write"),
    ([EVERYTHING], "no:such orders:read", "", "orders:read"), ([EVERYTHING], "", "", ""), ([EVERYTHING], "*", "", ""),
    ([], "orders:read", "", ""), ([EVERYTHING], None, "", ""), ([EVERYTHING], "orders:read", "orders:write", None),
])  # fmt: skip
async def test_granted_scopes_are_the_intersection(
    allowed: list[str], granted: str | None, asked: str, given: str | None
) -> None:
    """The extension, §7.2.1."""
    async with world(scopes=allowed) as there:
        reply = await there.bring(there.grant(scope=granted), **({"scope": asked} if asked else {}))
        assert (reply.message["scope"] if reply.status == 200 else None) == given
        assert reply.status == 200 or reply.error == "invalid_scope"


async def test_required_scopes_are_always_granted() -> None:
    async with world(scopes=[]) as there:
        desk = Desk(ServerStore(), people=there.desk.people, clients=[CLIENT], scopes=["shop:use"])
        reply = await World(there.provider, desk).bring(there.grant(scope=None))
        assert reply.message["scope"] == "shop:use"


@for_each(("granted", "asked", "given"), [
    (RESOURCE, None, RESOURCE), (ELSEWHERE, None, ELSEWHERE), ([RESOURCE, ELSEWHERE], None, [RESOURCE, ELSEWHERE]),
    ([RESOURCE, ELSEWHERE], ELSEWHERE, ELSEWHERE), (RESOURCE + "/", None, RESOURCE), (None, None, RESOURCE),
    (None, ELSEWHERE, None), (RESOURCE, ELSEWHERE, None), ("https://evil.example/mcp", None, None),
    (RESOURCE + "2", None, None), ("", None, None),
])  # fmt: skip
async def test_tokens_inherit_the_grant_audience(granted: Any, asked: str | None, given: Any) -> None:
    async with world() as there:
        reply = await there.bring(there.grant(resource=granted), **({"resource": asked} if asked else {}))
        if given is None:
            assert reply.error == "invalid_target"
        else:
            assert claims_of(reply.message["access_token"])["aud"] == given


async def test_identity_grants_require_client_authentication() -> None:
    async with world(clients=[auth.client("desk", redirect_uris=[BACK])]) as there:
        form = {"grant_type": JWT_BEARER, "assertion": there.grant(), "client_id": "desk"}
        assert (await there.desk.post("/token", form)).error == "unauthorized_client"
        about = {"grant_types": ["authorization_code", JWT_BEARER]}
        id = (await there.desk.register(**about))["client_id"]
        form = {**form, "assertion": there.grant(client_id=id), "client_id": id}
        assert (await there.desk.post("/token", form)).error == "unauthorized_client"
        own = await there.desk.register(**about, token_endpoint_auth_method="client_secret_post")
        form = {**form, "assertion": there.grant(client_id=own["client_id"]), "client_id": own["client_id"]}
        assert (await there.desk.post("/token", form)).status == 401
        assert (await there.desk.post("/token", {**form, "client_secret": own["client_secret"]})).status == 200
        bare = await there.desk.register(token_endpoint_auth_method="client_secret_post")
        form |= {"client_id": bare["client_id"], "client_secret": bare["client_secret"]}
        assert (await there.desk.post("/token", form)).error == "unauthorized_client"
    async with world() as there:
        assert (await there.bring(there.grant(), headers={"authorization": "Basic eDp4"})).status == 401


async def test_revocation_and_policy_changes_end_identity_tokens() -> None:
    """RFC 7009."""
    store = ServerStore()
    async with world(store) as there:
        first, second = [(await there.bring(there.grant())).message["access_token"] for _ in range(2)]
        revoked = await there.desk.post("/revoke", {"token": first}, authorization=BASIC)
        assert (revoked.status, await there.desk.who(first)) == (200, None)
        assert await there.desk.who(second) is not None
        for scopes in (["orders:write"], ["orders:read"]):
            ways = [KnownUsers(), auth.identity_provider(there.provider.url, scopes=scopes)]
            found = await Desk(store, people=ways, clients=[CLIENT]).who(second)
            assert (found is not None) == (scopes == ["orders:read"])
        assert await Desk(store, clients=[CLIENT]).who(second) is None


async def test_subjects_from_different_providers_are_distinct() -> None:
    async with world() as there:
        for name in ("ada", "bob", "openid:ada"):
            claims = claims_of((await there.bring(there.grant(sub=name))).message["access_token"])
            assert claims["sub"] == f"{there.provider.url}#{name}"
    with pytest.raises(ValueError, match="isn't a valid name"):
        auth.issuer(URL, users=auth.login_provider("https://a.example", name="https", allow=["*"], client_id="x",
                                             client_secret="y"))  # fmt: skip


async def test_identity_grants_are_disabled_without_a_provider(desk: Desk) -> None:
    form = {"grant_type": JWT_BEARER, "assertion": "x", "client_id": "x"}
    said = (await desk.ask("GET", ROOT)).message
    assert (await desk.post("/token", form)).error == "unsupported_grant_type"
    assert JWT_BEARER not in said["grant_types_supported"]
    assert "authorization_grant_profiles_supported" not in said
    async with world() as there:
        said = (await there.desk.ask("GET", ROOT)).message
        assert JWT_BEARER in said["grant_types_supported"]
        assert said["authorization_grant_profiles_supported"] == ["urn:ietf:params:oauth:grant-profile:id-jag"]


@for_each(("issuer", "options", "words"), [
    ("http://login.example.com", {}, "https URL"), ("login", {}, "https URL"), ("https://u:p@a.example", {}, "https"),
    ("https://login.example.com", {"scopes": "read"}, "must be a list"),
    ("https://login.example.com", {"scopes": ["a b"]}, "scope"),
    ("https://a.example#ada", {}, "query or fragment"), ("https://a.example?a", {}, "query or fragment"),
    (URL, {}, "own identity provider"), (URL + "/", {}, "own identity provider"),
])  # fmt: skip
def test_invalid_providers_are_rejected_in_the_configuration(issuer: str, options: dict[str, Any], words: str) -> None:
    with pytest.raises((ValueError, TypeError), match=words):
        auth.issuer(URL, users=auth.identity_provider(issuer, **options))


def test_duplicate_providers_are_rejected() -> None:
    twice = [auth.identity_provider("https://login.example.com", scopes=each) for each in (["a"], ["b"])]
    with pytest.raises(ValueError, match="listed twice"):
        auth.issuer(URL, users=twice)


async def test_provider_outage_is_reported_to_the_client() -> None:
    async with world() as there:
        there.provider.answers["/keys"] = b"HTTP/1.1 500 x\r\ncontent-length: 0\r\n\r\n"
        reply = await there.bring(there.grant())
        assert (reply.status, reply.error) == (503, "temporarily_unavailable")
    async with world() as there:
        assert (await there.bring(there.grant())).status == 200
        there.provider.answers["/keys"] = b"HTTP/1.1 500 x\r\ncontent-length: 0\r\n\r\n"
        assert (await there.bring(there.grant())).status == 200
        for number in range(20):
            await there.bring(there.grant(header={"kid": f"new {number}"}))
        assert there.provider.request_counts["/keys"] <= 2


async def test_provider_only_servers_show_no_password_form() -> None:
    async with run_issuer() as provider:
        only = auth.identity_provider(provider.url)
        desk = Desk(ServerStore(), people=only, clients=[CLIENT, auth.client("web", redirect_uris=[BACK])])
        answer = (await Browser(desk).open("web")).answer
        assert (answer["error"], answer["state"]) == ("access_denied", "st")
        assert "This server has no sign-in page" in answer["error_description"]
