"""The authorization server's metadata (RFC 8414, OpenID Connect Discovery), and the paths of its endpoints."""

from collections.abc import Callable, Collection
from typing import Any

from millstream.auth._authorization_server.clients import METHODS
from millstream.auth._authorization_server.config import IssuerConfig
from millstream.auth._authorization_server.records import ASSERTED, CLIENT, CODE, REFRESH
from millstream.auth._jose import ASYMMETRIC

AUTHORIZE, TOKEN, REGISTER = "/authorize", "/token", "/register"
REVOKE, INTROSPECT, KEYS = "/revoke", "/introspect", "/.well-known/jwks.json"
CALLBACK = "/sign-in/callback/"
OAUTH, OPENID = "/.well-known/oauth-authorization-server", "/.well-known/openid-configuration"
PROFILE = "urn:ietf:params:oauth:grant-profile:id-jag"
SHARED = (TOKEN, REGISTER, REVOKE, KEYS, OPENID, OAUTH)
"""Paths that pages of any origin may request, because they ignore cookies."""


def places(config: IssuerConfig) -> list[str]:
    """Return the paths where clients look for this issuer's metadata."""
    path = config.path
    return list(dict.fromkeys([OAUTH, OPENID, OAUTH + path, OPENID + path, path + OPENID]))


def metadata(config: IssuerConfig, known: Callable[[], Collection[str]]) -> dict[str, Any]:
    """Return the metadata document."""
    base = config.base
    scopes = {*config.scopes, *config.described, *known()} - {"offline_access"}
    algorithms = [each for each in ASYMMETRIC if each != "EdDSA"]
    methods = list(METHODS)
    members: dict[str, Any] = {
        "issuer": config.url,
        "authorization_endpoint": base + AUTHORIZE,
        "token_endpoint": base + TOKEN,
        "jwks_uri": base + KEYS,
        "revocation_endpoint": base + REVOKE,
        "introspection_endpoint": base + INTROSPECT,
        "scopes_supported": sorted(scopes),
        "response_types_supported": ["code"],
        "response_modes_supported": ["query"],
        "grant_types_supported": [CODE, REFRESH, CLIENT],
        "token_endpoint_auth_methods_supported": methods,
        "token_endpoint_auth_signing_alg_values_supported": algorithms,
        "revocation_endpoint_auth_methods_supported": methods,
        "revocation_endpoint_auth_signing_alg_values_supported": algorithms,
        "introspection_endpoint_auth_methods_supported": methods[1:],
        "introspection_endpoint_auth_signing_alg_values_supported": algorithms,
        "code_challenge_methods_supported": ["S256"],
        "authorization_response_iss_parameter_supported": True,
    }
    if config.metadata_documents:
        members["client_id_metadata_document_supported"] = True
    if config.identities:
        members["grant_types_supported"].append(ASSERTED)
        members["authorization_grant_profiles_supported"] = [PROFILE]
    if config.registration:
        members["registration_endpoint"] = base + REGISTER
    return members
