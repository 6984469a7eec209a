"""Authorization requests, and checks of their redirects."""

import base64
import hashlib
import secrets
from collections.abc import Mapping
from urllib.parse import urlencode

from msgspec import Struct

from millstream.client._errors import AccessDenied
from millstream.client._oauth.discovery import IssuerMetadata
from millstream.client._oauth.endpoints import brief
from millstream.client._oauth.store import Registration


class PendingAuthorization(Struct, frozen=True):
    """One authorization request (RFC 6749 §4.1.1, RFC 7636), kept until the user returns."""

    issuer: IssuerMetadata
    who: Registration
    target: str
    """The resource that the token is for (RFC 8707)."""
    scope: str
    redirect_uri: str
    state: str
    verifier: str

    @property
    def url(self) -> str:
        """The URL to open in the user's browser."""
        endpoint = self.issuer.authorization_endpoint
        digest = hashlib.sha256(self.verifier.encode()).digest()
        query = {
            "response_type": "code",
            "client_id": self.who.client_id,
            "redirect_uri": self.redirect_uri,
            "state": self.state,
            "code_challenge": base64.urlsafe_b64encode(digest).rstrip(b"=").decode(),
            "code_challenge_method": "S256",
            "resource": self.target,
            **({"scope": self.scope} if self.scope else {}),
            **({"prompt": "consent"} if "offline_access" in self.scope.split() else {}),
        }
        return f"{endpoint}{'&' if '?' in endpoint else '?'}{urlencode(query)}"

    def form(self, answer: Mapping[str, str]) -> dict[str, str]:
        """Return the token request for the parameters of the redirect.

        Raises:
            AccessDenied: the parameters don't answer this request.
        """
        return {
            "grant_type": "authorization_code",
            "code": code_of(answer, self.state, self.issuer),
            "redirect_uri": self.redirect_uri,
            "code_verifier": self.verifier,
            "resource": self.target,
        }


def code_of(answer: Mapping[str, str], state: str, issuer: IssuerMetadata) -> str:
    """Return the authorization code after checking `state` and `iss` (RFC 9207).

    Raises:
        AccessDenied: a check failed, or the login did.
    """
    named = answer.get("iss")
    if named is not None and named != issuer.issuer:
        raise AccessDenied(f"The login response is from {brief(named)}, but the request went to {issuer.issuer}.", 401)
    if named is None and issuer.authorization_response_iss_parameter_supported:
        raise AccessDenied(f"The login response lacks the iss parameter, although {issuer.issuer} announces it.", 401)
    if not secrets.compare_digest(answer.get("state", "").encode(), state.encode()):
        raise AccessDenied("The login response belongs to another login.", 401)
    if "code" not in answer:
        reason = answer.get("error_description") or answer.get("error") or "no reason given"
        raise AccessDenied(f"The login failed: {brief(reason)}.", 401)
    return answer["code"]
