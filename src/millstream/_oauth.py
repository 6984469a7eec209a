"""Parts of OAuth messages that our authorization server, its sign-ins, the client, and the gateway share."""

import re
from base64 import b64encode, urlsafe_b64encode
from collections.abc import Mapping
from hashlib import sha256
from urllib.parse import quote, urlencode, urlsplit

SCOPE = re.compile(r"[\x21\x23-\x5b\x5d-\x7e]+")
"""Syntax of a scope (RFC 6749 §3.3)."""
EXCHANGE = "urn:ietf:params:oauth:grant-type:token-exchange"
"""Grant type that exchanges tokens (RFC 8693)."""
JWT_BEARER = "urn:ietf:params:oauth:grant-type:jwt-bearer"
"""Grant type for assertions (RFC 7523 §2.1)."""
ASSERTION = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
"""Type of an assertion that authenticates a client (RFC 7523 §2.2)."""


def s256(text: str) -> str:
    """Return the hash of a code verifier (RFC 7636 §4.2) or of an access token (RFC 9449 §4.2)."""
    return urlsafe_b64encode(sha256(text.encode()).digest()).rstrip(b"=").decode()


def metadata_urls(issuer: str) -> list[str]:
    """Return the possible URLs of an issuer's metadata, in the order of the MCP specification (RFC 8414 §3, §5; OpenID
    Connect Discovery §4).
    """
    parts = urlsplit(issuer)
    origin, path = f"{parts.scheme}://{parts.netloc}", parts.path.rstrip("/")
    found = [f"{origin}/.well-known/{name}{path}" for name in ("oauth-authorization-server", "openid-configuration")]
    return [*found, f"{origin}{path}/.well-known/openid-configuration"] if path else found


def non_empty(**parameters: str) -> dict[str, str]:
    """Return the parameters that have a value."""
    return {name: value for name, value in parameters.items() if value}


def authorization_url(
    endpoint: str, client_id: str, redirect_uri: str, state: str, verifier: str, more: Mapping[str, str]
) -> str:
    """Return the URL of an authorization request (RFC 6749 §4.1.1) with PKCE (RFC 7636 §4.3).

    Args:
        endpoint: The authorization endpoint, which may have a query.
        client_id: The client's id.
        redirect_uri: The client's redirect URI.
        state: See RFC 6749 §10.12.
        verifier: The code verifier, of which the request contains only the hash.
        more: Further parameters. Empty ones are left out.
    """
    parameters = {
        "response_type": "code",
        "client_id": client_id,
        "redirect_uri": redirect_uri,
        "state": state,
        "code_challenge": s256(verifier),
        "code_challenge_method": "S256",
        **non_empty(**more),
    }
    return f"{endpoint}{'&' if '?' in endpoint else '?'}{urlencode(parameters)}"


def code_grant(code: str, redirect_uri: str, verifier: str) -> dict[str, str]:
    """Return the token request for an authorization code (RFC 6749 §4.1.3, RFC 7636 §4.5)."""
    return {
        "grant_type": "authorization_code",
        "code": code,
        "redirect_uri": redirect_uri,
        "code_verifier": verifier,
    }


def refresh_grant(token: str) -> dict[str, str]:
    """Return the token request for a refresh token (RFC 6749 §6)."""
    return {"grant_type": "refresh_token", "refresh_token": token}


def basic_credentials(client_id: str, secret: str) -> str:
    """Return the header that authenticates a client. Both parts are form-encoded first (RFC 6749 §2.3.1)."""
    pair = f"{quote(client_id, safe='')}:{quote(secret, safe='')}"
    return f"Basic {b64encode(pair.encode()).decode()}"
