"""Tokens as Entra ID, Auth0, Keycloak, Cognito, Okta, and Supabase issue them, and the settings that accept them."""

import json
from typing import Any

import pytest

from auth_world import make_server, run_guarded
from cases import for_each
from examples import issuers
from issuer_world import ISSUER, Issuer, claims, key_set, run_issuer, token
from millstream import Server, auth
from wire import request

URL = "https://mcp.example.com/mcp"
GUID = "6f1c0f3e-1111-2222-3333-444455556666"
TENANT, OTHER_TENANT = "aaaaaaaa-1111-2222-3333-444455556666", "bbbbbbbb-1111-2222-3333-444455556666"
PING = request("ping", id=5)
CONFIGURATION = "/.well-known/openid-configuration"

DIALECTS: dict[str, tuple[dict[str, Any], dict[str, Any], set[str]]] = {
    "Entra ID, v2": (
        {"aud": GUID, "azp": "client-1", "client_id": None, "scp": "notes.read notes.write", "scope": None,
         "roles": ["Admin"], "tid": TENANT, "ver": "2.0"},
        {"audience": GUID, "resource": URL},
        {"notes.read", "notes.write"},
    ),
    "Entra ID, v1": (
        {"aud": f"api://{GUID}", "appid": "client-1", "client_id": None, "scp": "notes.read", "scope": None},
        {"audience": [GUID, f"api://{GUID}"], "resource": URL},
        {"notes.read"},
    ),
    "Entra ID, roles of an application": (
        {"aud": GUID, "azp": "client-1", "client_id": None, "scope": None, "roles": ["Notes.Read.All"]},
        {"audience": GUID, "resource": URL, "scope_claims": ["scp", "roles"]},
        {"Notes.Read.All"},
    ),
    "Auth0": (
        {"aud": [URL, "https://tenant.auth0.com/userinfo"], "azp": "client-1", "client_id": None,
         "scope": "openid profile", "permissions": ["notes:read"], "sub": "auth0|5f7"},
        {"audience": URL, "scope_claims": ["scope", "permissions"]},
        {"openid", "profile", "notes:read"},
    ),
    "Keycloak, audience mapper": (
        {"aud": [URL, "account"], "azp": "client-1", "client_id": None, "typ": "Bearer", "scope": "openid notes",
         "realm_access": {"roles": ["writer"]}},
        {"audience": URL, "scope_claims": ["scope", "realm_access.roles"]},
        {"openid", "notes", "writer"},
    ),
    "Keycloak, defaults": (
        {"aud": "account", "azp": "client-1", "client_id": None, "typ": "Bearer", "scope": "openid notes"},
        {"audience": "account", "client_ids": ["client-1"], "resource": URL},
        {"openid", "notes"},
    ),
    "Cognito": (
        {"aud": None, "client_id": "client-1", "token_use": "access", "scope": "notes/read"},
        {"client_ids": ["client-1"], "resource": URL},
        {"notes/read"},
    ),
    "Okta": (
        {"aud": "api://default", "cid": "client-1", "client_id": None, "scp": ["notes.read"], "scope": None},
        {"audience": "api://default", "resource": URL},
        {"notes.read"},
    ),
    "Supabase": (
        {"aud": "authenticated", "client_id": "client-1", "role": "authenticated", "session_id": "s", "scope": None},
        {"audience": "authenticated", "resource": URL},
        set(),
    ),
}  # fmt: skip
"""Dialect -> claims of a token, arguments that accept it, and the scopes of the principal."""


def method(**options: Any) -> Any:
    """Return a method for the issuer with fixed keys."""
    return auth.jwt(issuer=ISSUER, jwks=key_set(), **options)


@for_each("dialect", DIALECTS)
async def test_tokens_from_well_known_issuers_are_accepted(dialect: str) -> None:
    said, options, scopes = DIALECTS[dialect]
    found = await method(**options).identify(token(claims(**said), typ="JWT"))
    assert found is not None
    assert found.principal.scopes == scopes
    assert found.principal.client == "client-1"


@for_each("dialect", DIALECTS)
async def test_clients_learn_the_server_url_with_every_issuer(dialect: str) -> None:
    async with run_guarded(make_server(method(**DIALECTS[dialect][1]))) as world:
        refused = await world.post(None, PING)
        assert (
            b'resource_metadata="https://mcp.example.com/.well-known/oauth-protected-resource/mcp"'
            in (refused.headers[b"www-authenticate"])
        )
        found = await world.ask(None, "GET", "/.well-known/oauth-protected-resource/mcp")
        assert found.message["resource"] == URL


REFUSED: dict[str, tuple[str, dict[str, Any]]] = {
    "another application of the tenant": ("Entra ID, v2", {"aud": OTHER_TENANT}),
    "an audience that contains ours": ("Entra ID, v2", {"aud": f"{GUID}0"}),
    "audiences that aren't text": ("Entra ID, v2", {"aud": [{}, 5, [GUID]]}),
    "an ID token of an application with an API": ("Entra ID, v2", {"nonce": "n"}),
    "an ID token with a hash": ("Entra ID, v2", {"at_hash": "h"}),
    "a logout token": ("Entra ID, v2", {"events": {"http://schemas.openid.net/event/backchannel-logout": {}}}),
    "a logout token of an accepted client": ("Keycloak, defaults", {"events": {}}),
    **{f"Keycloak's type {each}": ("Keycloak, defaults", {"typ": each}) for each in ("ID", "Refresh", "Offline")},
    "the URL, though tokens name something else": ("Entra ID, v2", {"aud": URL}),
    "another client of the realm": ("Keycloak, defaults", {"azp": "client-2"}),
    "no client": ("Keycloak, defaults", {"azp": None}),
    "another audience of an accepted client": ("Keycloak, defaults", {"aud": "billing"}),
    "no audience of an accepted client": ("Keycloak, defaults", {"aud": None}),
    "an ID token of Cognito": ("Cognito", {"aud": "client-1", "token_use": "id"}),
    "an ID token without its audience": ("Cognito", {"token_use": "id"}),
    "a Cognito token for another resource": ("Cognito", {"aud": "https://other.example.com"}),
    "another client of the pool": ("Cognito", {"client_id": "client-2"}),
    "a client id that isn't text": ("Cognito", {"client_id": ["client-1"]}),
    "two clients": ("Cognito", {"client_id": "client-2", "azp": "client-1"}),
}


@for_each("case", REFUSED)
async def test_tokens_for_other_servers_are_rejected(case: str) -> None:
    dialect, changes = REFUSED[case]
    said, options, _ = DIALECTS[dialect]
    assert await method(**options).identify(token(claims(**{**said, **changes}), typ="JWT")) is None


@for_each("given", ["notes", ["notes"], {"roles": ["notes"]}, None, 5, [5, {}], "*"])
async def test_scopes_come_only_from_text_in_malformed_claims(given: Any) -> None:
    found = await method(audience=URL, scope_claims=["a.b"]).identify(token(claims(a={"b": given})))
    assert found is not None
    assert found.principal.scopes == ({"notes"} if given in ("notes", ["notes"]) else set())


async def test_claim_name_with_a_dot_takes_precedence_over_a_path() -> None:
    said = {"https://example.com/roles": ["writer"], "https://example": {"com/roles": ["admin"]}}
    found = await method(audience=URL, scope_claims=["https://example.com/roles"]).identify(token(claims(**said)))
    assert found is not None
    assert found.principal.scopes == {"writer"}


@for_each(
    ("options", "hint"),
    [
        ({}, "client_ids"),
        ({"audience": []}, "client_ids"),
        ({"audience": ["a", ""]}, "audience"),
        ({"audience": "account"}, "audience mapper"),
        ({"audience": GUID, "resource": GUID}, "resource must be"),
        ({"audience": GUID, "resource": "api://x"}, "resource must be"),
        ({"audience": GUID, "client_ids": "one"}, "client_ids"),
        ({"audience": GUID, "scope_claims": "roles"}, "scope_claims"),
    ],
)
def test_settings_that_would_accept_unrelated_tokens_are_rejected(options: dict[str, Any], hint: str) -> None:
    with pytest.raises((ValueError, TypeError), match=hint):
        method(**options)


@for_each("told", [True, False])
async def test_a_server_without_a_url_warns_and_advertises_the_requested_one(
    told: bool, caplog: pytest.LogCaptureFixture
) -> None:
    more = {"resource": URL} if told else {}
    async with run_guarded(make_server(method(audience=GUID, **more), allowed_hosts=["mcp.example.com"])) as world:
        assert ("Pass resource=" in caplog.text) is not told
        for host in ("mcp.example.com", "127.0.0.1:4", "[::1]:80"):
            refused = await world.ask(None, "GET", "/sse", host=host, x_forwarded_host="evil.example")
            named = URL.removesuffix("/mcp") if told else f"http://{host}"
            assert (
                f'resource_metadata="{named}/.well-known/oauth-protected-resource/sse"'.encode()
                in (refused.headers[b"www-authenticate"])
            )
            found = await world.ask(None, "GET", "/.well-known/oauth-protected-resource/sse", host=host)
            assert found.message["resource"] == f"{named}/sse"
        assert (await world.ask(None, "GET", "/sse", host="evil.example")).status == 421
    caplog.clear()


async def test_scopes_for_clients_have_the_prefix_that_the_issuer_expects() -> None:
    only = method(audience=GUID, resource=URL, scopes=["notes.read"], scope_prefix=f"api://{GUID}/")
    said = DIALECTS["Entra ID, v2"][0]
    async with run_guarded(make_server(only)) as world:
        assert (
            f'scope="api://{GUID}/notes.read"'.encode() in (await world.post(None, PING)).headers[b"www-authenticate"]
        )
        found = await world.ask(None, "GET", "/.well-known/oauth-protected-resource")
        assert f"api://{GUID}/orders:write" in found.message["scopes_supported"]
        assert (await world.post(token(claims(**said)), PING)).status == 200
        refused = await world.call(token(claims(**said)), "order", {"isbn": "1"})
        assert (
            f'scope="api://{GUID}/notes.read api://{GUID}/orders:write"'.encode()
            in (refused.headers[b"www-authenticate"])
        )


@pytest.mark.parametrize(
    ("listed", "named"),
    [(["openid", "email", "service_account"], ["openid"]), (["read"], None), ("openid", None), (None, None)],
)
async def test_server_without_scopes_advertises_only_openid(listed: Any, named: list[str] | None) -> None:
    async with run_issuer() as issuer:
        issuer.answers[CONFIGURATION] |= {"scopes_supported": listed}
        server = Server("notes", auth=auth.oidc(issuer.url, audience=URL))
        async with run_guarded(server) as world:
            found = await world.ask(None, "GET", "/.well-known/oauth-protected-resource/mcp")
            assert found.message.get("scopes_supported") == named


async def test_metadata_is_served_while_the_issuer_does_not_respond() -> None:
    async with run_issuer() as issuer:
        issuer.answers[CONFIGURATION] = b"HTTP/1.1 503 Busy\r\ncontent-length: 0\r\n\r\n"
        async with run_guarded(Server("notes", auth=auth.oidc(issuer.url, audience=URL))) as world:
            found = await world.ask(None, "GET", "/.well-known/oauth-protected-resource/mcp")
            assert found.message["authorization_servers"] == [issuer.url]
            assert "scopes_supported" not in found.message


# Tenants


def common(issuer: Issuer) -> str:
    """Make an issuer's metadata that of several tenants, and return its URL."""
    place = f"{issuer.url}/organizations/v2.0"
    keys = key_set()
    keys["keys"][1]["issuer"] = f"{issuer.url}/{OTHER_TENANT}/v2.0"
    keys["keys"][0]["issuer"] = f"{issuer.url}/{{tenantid}}/v2.0"
    issuer.answers["/keys"] = keys
    issuer.answers[f"/organizations/v2.0{CONFIGURATION}"] = {
        "issuer": f"{issuer.url}/{{tenantid}}/v2.0", "jwks_uri": f"{issuer.url}/keys",
    }  # fmt: skip
    return place


def of_tenant(issuer: Issuer, tenant: str | None, named: Any = None, **more: Any) -> str:
    """Return a token whose issuer is that of `tenant`, and whose claim names `named`, or the same one."""
    said = claims(iss=f"{issuer.url}/{tenant}/v2.0", tid=named or tenant, aud=GUID)
    return token(said, typ="JWT", **more)


async def test_tokens_from_listed_tenants_are_accepted() -> None:
    async with run_issuer() as issuer:
        only: Any = auth.oidc(common(issuer), audience=GUID, tenants=[TENANT])
        assert only.issuers == (f"{issuer.url}/{TENANT}/v2.0",)
        found = await only.identify(of_tenant(issuer, TENANT))
        assert found is not None
        assert found.principal.issuer == f"{issuer.url}/{TENANT}/v2.0"
        assert only.holds(found.principal.id)
        for tenant, named in (
            (OTHER_TENANT, None), (OTHER_TENANT, TENANT), (TENANT, OTHER_TENANT), ("{tenantid}", TENANT),
            (TENANT, "{tenantid}"), (TENANT, "*"), (TENANT, [TENANT]),
        ):  # fmt: skip
            assert await only.identify(of_tenant(issuer, tenant, named)) is None


async def test_any_tenant_is_accepted_only_with_its_own_issuer_and_key() -> None:
    async with run_issuer() as issuer:
        every: Any = auth.oidc(common(issuer), audience=GUID, tenants=["*"])
        for tenant in (TENANT, OTHER_TENANT):
            found = await every.identify(of_tenant(issuer, tenant))
            assert found is not None
            assert every.holds(found.principal.id)
        assert not every.holds("https://elsewhere.example/x/v2.0 ada")
        assert await every.identify(of_tenant(issuer, TENANT, OTHER_TENANT)) is None
        assert await every.identify(of_tenant(issuer, "x/y", "x/y")) is None
        # The second key belongs to the other tenant.
        assert await every.identify(of_tenant(issuer, OTHER_TENANT, alg="RS256")) is not None
        assert await every.identify(of_tenant(issuer, TENANT, alg="RS256")) is None


async def test_error_for_an_issuer_with_several_tenants_suggests_a_fix(caplog: pytest.LogCaptureFixture) -> None:
    async with run_issuer() as issuer:
        async with run_guarded(make_server(auth.oidc(common(issuer), audience=GUID))) as world:
            assert (await world.post(of_tenant(issuer, TENANT), PING)).status == 503
        assert "tenants=[" in caplog.text
        assert "Configure that exact URL" not in caplog.text


@for_each("options", [{"tenants": [TENANT]}, {"tenants": "x"}])
def test_tenants_are_rejected_for_a_single_tenant_issuer(options: dict[str, Any]) -> None:
    with pytest.raises((ValueError, TypeError), match="tenants"):
        auth.oidc(f"https://login.example.com/{TENANT}/v2.0", audience=GUID, **options)


# Introspection


@for_each("missing", ["exp", "aud"])
async def test_introspection_may_omit_optional_members(missing: str) -> None:
    """RFC 7662 §2.2."""
    async with run_issuer() as issuer:
        said = {**claims(iss=issuer.url), "active": True}
        del said[missing]
        issuer.answers["/introspect"] = json.loads(json.dumps(said))

        def asking(**options: Any) -> Any:
            where = f"{issuer.url}/introspect"
            return auth.introspection(issuer=issuer.url, endpoint=where, client="a", secret="b", **options)

        by_audience = await asking(audience=URL).identify("opaque")
        assert (by_audience is not None) is (missing == "exp")
        by_client = await asking(client_ids=["desk"], resource=URL).identify("opaque")
        assert (by_client is not None) is (missing == "aud")
        assert await asking(client_ids=["other"], resource=URL).identify("opaque") is None


# The guide


GUIDES: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "Keycloak, audience mapper": (issuers.keycloak, ()),
    "Keycloak, defaults": (issuers.keycloak_without_mapper, ("client-1",)),
    "Entra ID, v2": (issuers.entra, (GUID,)),
    "Auth0": (issuers.auth0, ()),
    "Cognito": (issuers.cognito, ("client-1",)),
    "Okta": (issuers.okta, ()),
    "Supabase": (issuers.supabase, ()),
}


@for_each("dialect", GUIDES)
async def test_settings_in_the_guide_accept_tokens_and_advertise_the_server(dialect: str) -> None:
    make, arguments = GUIDES[dialect]
    async with run_issuer() as issuer:
        only = make(issuer.url, *arguments)
        assert only.resource == URL
        assert await only.identify(token(claims(iss=issuer.url, **DIALECTS[dialect][0]), typ="JWT")) is not None


async def test_tenants_in_the_guide_are_accepted() -> None:
    async with run_issuer() as issuer:
        only = issuers.entra_tenants(common(issuer), GUID, [TENANT, OTHER_TENANT])
        for tenant in (TENANT, OTHER_TENANT):
            assert await only.identify(of_tenant(issuer, tenant)) is not None
