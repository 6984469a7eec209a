"""Discovery of metadata about servers (RFC 9728) and authorization servers (RFC 8414, OIDC).

https://modelcontextprotocol.io/specification/2026-07-28/basic/authorization. Servers of 2025-03-26 don't publish
their own metadata; their authorization server is at the root of the same origin.
"""

from urllib.parse import urlsplit

from msgspec import Struct

from millstream._http.client.url import Url
from millstream.client._errors import AccessDenied
from millstream.client._oauth.issuer_http import Outbound, get_json, parse_secure, refuse_local


class ProtectedResource(Struct):
    """Protected resource metadata of a server."""

    resource: str = ""
    authorization_servers: list[str] = []
    scopes_supported: list[str] = []
    dpop_signing_alg_values_supported: list[str] = []
    dpop_bound_access_tokens_required: bool = False


class IssuerMetadata(Struct):
    """Metadata of an authorization server."""

    issuer: str = ""
    authorization_endpoint: str = ""
    token_endpoint: str = ""
    registration_endpoint: str = ""
    revocation_endpoint: str = ""
    scopes_supported: list[str] = []
    code_challenge_methods_supported: list[str] = []
    token_endpoint_auth_methods_supported: list[str] = []
    token_endpoint_auth_signing_alg_values_supported: list[str] = []
    client_id_metadata_document_supported: bool = False
    authorization_response_iss_parameter_supported: bool = False
    dpop_signing_alg_values_supported: list[str] = []


async def find_resource(url: Url, named: str, outbound: Outbound) -> ProtectedResource | None:
    """Return the metadata of a server, from the URL in its challenge or from the well-known URLs.

    Raises:
        AccessDenied: the metadata describes another server.
    """
    path = url.target.partition("?")[0].rstrip("/")
    known = "/.well-known/oauth-protected-resource"
    places = [refuse_local(named, url)] if named else [f"{url.origin}{known}{path}", f"{url.origin}{known}"]
    for place in dict.fromkeys(places):
        found = await get_json(place, ProtectedResource, outbound)
        if found is not None and found.authorization_servers:
            if not _covers(found.resource, url):
                raise AccessDenied(f"The metadata of {url} describes another server, {found.resource}.", 401)
            return found
    return None


def _covers(resource: str, url: Url) -> bool:
    """Return whether metadata covers this server: the same origin, and the same path or a parent of it."""
    try:
        theirs = urlsplit(resource)
    except ValueError:
        return False
    ours = urlsplit(str(url))
    same = (theirs.scheme.lower(), theirs.netloc.lower()) == (ours.scheme, ours.netloc.lower())
    above = theirs.path.rstrip("/") + "/"
    return not resource or (same and (ours.path.rstrip("/") + "/").startswith(above))


async def find_issuer(issuer: str, outbound: Outbound) -> IssuerMetadata | None:
    """Return the metadata of an authorization server.

    Raises:
        AccessDenied: the metadata names another issuer.
    """
    parse_secure(issuer)
    parts = urlsplit(issuer)
    origin, path = f"{parts.scheme}://{parts.netloc}", parts.path.rstrip("/")
    places = [f"{origin}/.well-known/{name}{path}" for name in ("oauth-authorization-server", "openid-configuration")]
    if path:
        places.append(f"{origin}{path}/.well-known/openid-configuration")
    for place in places:
        found = await get_json(place, IssuerMetadata, outbound)
        if found is not None and found.token_endpoint:
            if found.issuer != issuer:
                raise AccessDenied(f"The metadata of {issuer} names another issuer, {found.issuer}.", 401)
            return _check_endpoints(found, parse_secure(place))
    return None


async def find_at_origin(url: Url, outbound: Outbound) -> IssuerMetadata:
    """Return the authorization server of a 2025-03-26 server, from its origin or from that revision's default
    endpoints.
    """
    origin = url.origin
    found = await get_json(f"{origin}/.well-known/oauth-authorization-server", IssuerMetadata, outbound)
    if found is not None and found.token_endpoint:
        if found.issuer.rstrip("/") != origin:
            raise AccessDenied(f"The metadata of {origin} names another issuer, {found.issuer}.", 401)
        return _check_endpoints(found, url)
    return IssuerMetadata(
        issuer=origin,
        authorization_endpoint=f"{origin}/authorize",
        token_endpoint=f"{origin}/token",
        registration_endpoint=f"{origin}/register",
        code_challenge_methods_supported=["S256"],
    )


def _check_endpoints(issuer: IssuerMetadata, named_by: Url) -> IssuerMetadata:
    places = (
        issuer.authorization_endpoint,
        issuer.token_endpoint,
        issuer.registration_endpoint,
        issuer.revocation_endpoint,
    )
    for place in places:
        refuse_local(place, named_by)
    return issuer
