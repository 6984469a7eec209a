"""Servers that accept the tokens of well-known issuers, each with the settings that its tokens need."""

from millstream import auth

URL = "https://mcp.example.com/mcp"


# region: keycloak
def keycloak(issuer: str) -> auth.AnyAuthMethod:
    """A realm such as https://keycloak.example.com/realms/team, with an audience mapper for URL."""
    return auth.oidc(issuer, audience=URL, scope_claims=["scope", "realm_access.roles"])


# endregion


# region: keycloak-defaults
def keycloak_without_mapper(issuer: str, client: str) -> auth.AnyAuthMethod:
    """A realm as it is. Only tokens of one client are accepted, because the audience says nothing."""
    return auth.oidc(issuer, audience="account", client_ids=[client], resource=URL)


# endregion


# region: entra
def entra(issuer: str, application: str) -> auth.AnyAuthMethod:
    """A tenant such as https://login.microsoftonline.com/TENANT/v2.0, and the id of the application for this server."""
    return auth.oidc(
        issuer,
        audience=application,
        resource=URL,
        scopes=["notes.read"],
        scope_claims=["scp", "roles"],
        scope_prefix=f"{URL}/",
    )


# endregion


# region: tenants
def entra_tenants(issuer: str, application: str, tenants: list[str]) -> auth.AnyAuthMethod:
    """Several tenants. The issuer is https://login.microsoftonline.com/organizations/v2.0."""
    return auth.oidc(issuer, audience=application, resource=URL, tenants=tenants)


# endregion


# region: auth0
def auth0(issuer: str) -> auth.AnyAuthMethod:
    """A tenant such as https://team.eu.auth0.com/, with URL as the identifier of an API."""
    return auth.oidc(issuer, audience=URL, scope_claims=["scope", "permissions"])


# endregion


# region: cognito
def cognito(issuer: str, client: str) -> auth.AnyAuthMethod:
    """A pool such as https://cognito-idp.eu-west-1.amazonaws.com/POOL, and the id of an app client."""
    return auth.oidc(issuer, client_ids=[client], resource=URL)


# endregion


# region: okta
def okta(issuer: str) -> auth.AnyAuthMethod:
    """An authorization server such as https://team.okta.com/oauth2/default."""
    return auth.oidc(issuer, audience="api://default", resource=URL)


# endregion


# region: supabase
def supabase(issuer: str) -> auth.AnyAuthMethod:
    """A project such as https://PROJECT.supabase.co/auth/v1, with its server for OAuth."""
    return auth.oidc(issuer, audience="authenticated", resource=URL)


# endregion
