"""OpenID Connect as a way to sign in: the code flow with PKCE, of which only the ID token is believed.

The issuer's metadata says where everything is. The token's signature, issuer, audience, nonce and times are checked
(OpenID Connect Core §3.1.3.7), and so is `iss` in the response (RFC 9207). What the issuer gives besides, such as an
access token, is used for its userinfo endpoint where the ID token doesn't say what we need, and forgotten.
"""

import hmac
import logging
from base64 import b64encode
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import quote

import msgspec
from msgspec import Struct

from millstream._http.outbound import OutboundError, check_url
from millstream._protocol.json_schema import is_array, is_object
from millstream.auth._claims import Rules
from millstream.auth._discovery import Discovery
from millstream.auth._issuing.allowed import Allowed
from millstream.auth._issuing.elsewhere import ask, challenge_of, code_of, get, link, text
from millstream.auth._issuing.records import new_secret
from millstream.auth._issuing.ways import Away, Returned, SignInFailed, User
from millstream.auth._jose import ASYMMETRIC
from millstream.auth._key_sets import FetchedKeys
from millstream.auth._method import Unavailable
from millstream.auth._tokens import TokenMethod

logger = logging.getLogger("millstream")

_SCOPE = "openid email profile"
_TYPES = frozenset(("jwt", ""))

NamesOf = Callable[[Mapping[str, Any]], frozenset[str]]
"""The names that an issuer vouches for, in its claims about somebody."""


def verified_names(claims: Mapping[str, Any]) -> frozenset[str]:
    """A verified e-mail address, and its domain."""
    email = text(claims.get("email"))
    # Some write the text. Without the claim, people may have any address that they like.
    if "@" not in email or claims.get("email_verified") not in (True, "true"):
        return frozenset()
    return frozenset((email, f"@{email.rpartition('@')[2]}"))


def google_names(claims: Mapping[str, Any]) -> frozenset[str]:
    """The same for Google, which only knows whose an address is where it has the mailbox, or manages the account.

    Anybody can have a Google account with an address of another domain, and keep it after they lost that address. So a
    domain is that of the organization that manages the account, which is in `hd`.
    """
    names = {each for each in verified_names(claims) if not each.startswith("@")}
    if names and (organization := text(claims.get("hd"))):
        return frozenset((*names, f"@{organization}"))
    return frozenset(each for each in names if each.lower().endswith("@gmail.com"))


class _Kept(Struct, frozen=True):
    """What waits for the browser to come back."""

    nonce: str
    verifier: str


class OpenIdUpstream:
    """The people of one OpenID provider."""

    def __init__(
        self,
        issuer: str,
        *,
        client_id: str,
        client_secret: str,
        allowed: Allowed,
        name: str,
        title: str,
        names_of: NamesOf = verified_names,
        parameters: Mapping[str, str] | None = None,
    ) -> None:
        # Configuration
        self.name = name
        self.label = f"Continue with {title}"
        self._title = title
        self._issuer = issuer
        self._client_id = client_id
        self._client_secret = client_secret
        self._allowed = allowed
        self._names_of = names_of
        self._parameters = dict(parameters or {})
        # Process
        self._discovery = Discovery(issuer, get)
        keys = FetchedKeys(self._discovery.keys_url, get)
        self._tokens = TokenMethod(Rules(issuer, client_id), keys, algorithms=ASYMMETRIC, types=_TYPES)

    def still(self, user: User) -> bool:
        """Whether the entry by which somebody came still lets them in."""
        return self._allowed.still(user.since)

    # Away

    async def begin(self, callback: str, state: str) -> Away:
        """Where to send the browser."""
        endpoint = self._endpoint(await self._metadata(), "authorization_endpoint")
        kept = _Kept(new_secret(), new_secret())
        asked = {
            "response_type": "code", "client_id": self._client_id, "redirect_uri": callback, "scope": _SCOPE,
            "state": state, "nonce": kept.nonce, "code_challenge": challenge_of(kept.verifier),
            "code_challenge_method": "S256", **self._parameters,
        }  # fmt: skip
        return Away(link(endpoint, asked), msgspec.json.encode(kept))

    async def _metadata(self) -> dict[str, Any]:
        try:
            return await self._discovery.metadata()
        except Unavailable as exc:
            raise SignInFailed(f"{self._title} doesn't answer. Try again later.") from exc

    def _endpoint(self, metadata: Mapping[str, Any], name: str) -> str:
        url = metadata.get(name)
        try:
            return check_url(url if isinstance(url, str) else "").geturl()
        except OutboundError as exc:
            logger.error("%s says no %s that can be used: %s", self._issuer, name, exc)
            raise SignInFailed(f"{self._title} can't be used now.") from None

    # Back

    async def finish(self, returned: Returned) -> User:
        """Who came back."""
        metadata = await self._metadata()
        self._check_issuer(metadata, returned.query)
        code = code_of(returned.query, self._title)
        kept = msgspec.json.decode(returned.kept, type=_Kept)
        given = await self._exchange(metadata, code, returned.callback, kept.verifier)
        claims = await self._open(given.get("id_token"), kept.nonce)
        subject = str(claims["sub"])
        if "email_verified" not in claims and "userinfo_endpoint" in metadata:
            claims = await self._userinfo(metadata, given.get("access_token"), subject)
        name, email = text(claims.get("name")), text(claims.get("email"))
        entry = self._allowed.find(self._names_of(claims), email or name or subject)
        return User(subject, name or email or subject, entry.scopes, entry.number)

    def _check_issuer(self, metadata: Mapping[str, Any], query: Mapping[str, str]) -> None:
        """RFC 9207 §2.4. A response of another server is none to the question that this one was asked."""
        said = query.get("iss")
        if said is None and metadata.get("authorization_response_iss_parameter_supported") is not True:
            return
        if said != self._issuer:
            raise SignInFailed(f"The answer doesn't come from {self._title}. Start again.")

    async def _exchange(
        self, metadata: Mapping[str, Any], code: str, callback: str, verifier: str
    ) -> Mapping[str, Any]:
        """What the token endpoint gives for a code."""
        form = {"grant_type": "authorization_code", "code": code, "redirect_uri": callback, "code_verifier": verifier}
        headers: dict[str, str] = {}
        methods = metadata.get("token_endpoint_auth_methods_supported")
        if not is_array(methods) or "client_secret_basic" in methods:
            # RFC 6749 §2.3.1: both are encoded as in a form first.
            pair = f"{quote(self._client_id, safe='')}:{quote(self._client_secret, safe='')}"
            headers["authorization"] = f"Basic {b64encode(pair.encode()).decode()}"
        else:
            form |= {"client_id": self._client_id, "client_secret": self._client_secret}
        found = await ask(self._endpoint(metadata, "token_endpoint"), self._title, form=form, headers=headers)
        return found if is_object(found) else {}

    async def _open(self, token: object, nonce: str) -> Mapping[str, Any]:
        """The claims of an ID token."""
        try:
            found = await self._tokens.identify(token) if isinstance(token, str) else None
        except Unavailable as exc:
            raise SignInFailed(f"{self._title} doesn't answer. Try again later.") from exc
        claims = found.principal.claims if found is not None else {}
        if (
            not claims
            or not self._is_ours(claims)
            or not hmac.compare_digest(text(claims.get("nonce")).encode("utf-8", "replace"), nonce.encode())
        ):
            logger.error("%s gave an ID token that can't be believed.", self._issuer)
            raise SignInFailed(f"What {self._title} says about you can't be believed. Start again.")
        return claims

    def _is_ours(self, claims: Mapping[str, Any]) -> bool:
        """Whether a token that names us is for us: one for several audiences says who asked for it."""
        several = isinstance(claims.get("aud"), list) and len(claims["aud"]) > 1
        return bool(claims.get("azp", None if several else self._client_id) == self._client_id)

    async def _userinfo(self, metadata: Mapping[str, Any], token: object, subject: str) -> Mapping[str, Any]:
        if not isinstance(token, str):
            raise SignInFailed(f"{self._title} doesn't say who you are.")
        headers = {"authorization": f"Bearer {token}"}
        found = await ask(self._endpoint(metadata, "userinfo_endpoint"), self._title, headers=headers)
        # OpenID Connect Core §5.3.4: it would be about somebody else.
        if not is_object(found) or found.get("sub") != subject:
            raise SignInFailed(f"What {self._title} says about you can't be believed. Start again.")
        return found
