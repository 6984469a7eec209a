"""Requests to authorization servers: registration, tokens, and revocation (RFC 7591, 6749, and 7009)."""

from collections.abc import Mapping

import msgspec
from msgspec import Struct

from millstream._oauth import basic_credentials
from millstream.client._errors import AccessDenied
from millstream.client._oauth.discovery import IssuerMetadata, Outbound, fetch, post_form, read_object
from millstream.client._oauth.dpop import Proofs
from millstream.client._oauth.store import PRIVATE_KEY_JWT, Registration, Tokens

_MAX_DETAIL = 200
_REMEDY = "Pass OAuth a client_id that the issuer knows."


class TokenResponse(Struct):
    """The response of a token endpoint."""

    access_token: str = ""
    refresh_token: str = ""
    scope: str = ""
    expires_in: float = 0
    token_type: str = ""
    issued_token_type: str = ""
    error: str = ""
    error_description: str = ""

    def check(self, issuer: str, wanted: str = "token") -> None:
        """Check that there's a token of a type that we support (RFC 6749 §7.1), and that it fits in a header.

        Raises:
            AccessDenied: There's no such token.
        """
        token = self.access_token
        if self.error or not token:
            why = brief(self.error_description or self.error or "no reason given")
            raise AccessDenied(f"{issuer} issued no {wanted}: {why}.", 401)
        if self.token_type.lower() not in ("", "bearer", "dpop") or not (token.isascii() and token.isprintable()):
            kind = brief(self.token_type) or "Bearer"
            raise AccessDenied(f"{issuer} issued a token of type {kind}, which this client can't send.", 401)


def brief(text: str) -> str:
    """Shorten an issuer's text for use in a sentence."""
    return " ".join(text.split())[:_MAX_DETAIL].rstrip(".")


def method_of(issuer: IssuerMetadata, who: Registration) -> str:
    """Return the client authentication method for the token endpoint."""
    if who.token_endpoint_auth_method:
        return who.token_endpoint_auth_method
    offered = issuer.token_endpoint_auth_methods_supported
    usable = ["client_secret_basic", "client_secret_post"] if who.client_secret else ["none"]
    if not who.client_id:  # about to register
        usable = ["none", "client_secret_basic", "client_secret_post"]
    return next((method for method in usable if method in offered), usable[0])


async def register(issuer: IssuerMetadata, name: str, redirect: str, outbound: Outbound) -> Registration:
    """Register as a client of an issuer.

    Raises:
        AccessDenied: The issuer refused.
    """
    if not issuer.registration_endpoint:
        raise AccessDenied(f"{issuer.issuer} doesn't support client registration.", 401, remedy=_REMEDY)
    about = {
        "client_name": name,
        "redirect_uris": [redirect],
        "grant_types": ["authorization_code", "refresh_token"],
        "response_types": ["code"],
        "application_type": "web" if redirect.startswith("https:") else "native",
        "token_endpoint_auth_method": method_of(issuer, Registration()),
    }
    kind = {"Content-Type": "application/json"}
    reply = await fetch(
        "POST", issuer.registration_endpoint, headers=kind, body=msgspec.json.encode(about), outbound=outbound
    )
    try:
        found = read_object(reply.body, Registration)
    except (ValueError, RecursionError):
        found = Registration()
    if reply.status not in (200, 201) or not found.client_id:
        raise _registration_error(issuer.issuer, reply.status)
    # The response doesn't contain our signing key.
    return Registration(found.client_id, found.client_secret, found.token_endpoint_auth_method)


def _registration_error(issuer: str, status: int) -> AccessDenied:
    if status == 404:
        return AccessDenied(
            f"There's no authorization server at {issuer}. The server may require an API key instead.", 401
        )
    return AccessDenied(f"{issuer} refused to register this client (status {status}).", 401, remedy=_REMEDY)


async def ask_token(
    issuer: IssuerMetadata,
    who: Registration,
    form: Mapping[str, str],
    outbound: Outbound,
    proofs: Proofs | None = None,
    key: str = "",
) -> TokenResponse:
    """Send a request to the token endpoint, with a proof of `key`, a private key in PEM, if there is one."""
    proofs = proofs or Proofs()
    where, response = issuer.token_endpoint, TokenResponse()
    for _ in range(2):
        fields, headers = authenticate(issuer, who, form)
        reply = await post_form(where, fields, {**headers, **proofs.headers(key, "POST", where)}, outbound)
        try:
            response = read_object(reply.body, TokenResponse)
        except (ValueError, RecursionError):
            return TokenResponse(error=f"status {reply.status}, with an unreadable response")
        new = proofs.learn(where, reply.header(b"dpop-nonce"))
        if response.error != "use_dpop_nonce" or not new:
            break
    return response


async def revoke(issuer: IssuerMetadata, who: Registration, tokens: Tokens, outbound: Outbound) -> bool:
    """Revoke tokens, and return whether all of them are revoked."""
    if not issuer.revocation_endpoint:
        return False
    revoked = True
    for kind, token in {"refresh_token": tokens.refresh_token, "access_token": tokens.access_token}.items():
        if token:
            fields, headers = authenticate(issuer, who, {"token": token, "token_type_hint": kind})
            reply = await post_form(issuer.revocation_endpoint, fields, headers, outbound)
            revoked = reply.status == 200 and revoked
    return revoked


def authenticate(
    issuer: IssuerMetadata, who: Registration, form: Mapping[str, str]
) -> tuple[dict[str, str], dict[str, str]]:
    """Return the form fields and headers that authenticate the client for one request.

    Raises:
        AccessDenied: The issuer doesn't accept signatures by our key.
    """
    method = method_of(issuer, who)
    if method == "client_secret_basic":
        return {**form}, {"Authorization": basic_credentials(who.client_id, who.client_secret)}
    fields = {**form, **({"client_id": who.client_id} if who.client_id else {})}
    if method == "client_secret_post":
        fields["client_secret"] = who.client_secret
    if method == PRIVATE_KEY_JWT and who.private_key:
        from millstream.client._oauth.signing import assertion  # noqa: PLC0415  needed only for signatures

        fields |= assertion(issuer, who)
    return fields, {}
