"""The code flow of OpenID Connect with PKCE, as a client of an issuer: away with a browser, and back with its tokens.

The issuer's metadata says where everything is. The signature of the ID token, its issuer, audience, nonce and times are
checked (OpenID Connect Core §3.1.3.7), and so is `iss` in the response (RFC 9207). Whom the person may be is not judged
here.
"""

import hmac
import logging
from base64 import b64encode
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

import msgspec
from msgspec import Struct

from millstream._http.client.fetch import OutboundError, check_url
from millstream._protocol.json_schema import is_array, is_object
from millstream.auth._authorization_server.login_methods import AuthorizationRedirect, Callback, SignInFailed
from millstream.auth._authorization_server.records import new_secret
from millstream.auth._authorization_server.upstream_http import ask, challenge_of, code_of, get, link, text
from millstream.auth._claims import Rules
from millstream.auth._discovery import Discovery
from millstream.auth._jose import ASYMMETRIC
from millstream.auth._key_sets import FetchedKeys
from millstream.auth._method import Unavailable
from millstream.auth._tokens import TokenMethod

logger = logging.getLogger("millstream")

_TYPES = frozenset(("jwt", ""))


class _Kept(Struct, frozen=True):
    """What waits for the browser to come back."""

    nonce: str
    verifier: str


class Found(Struct, frozen=True):
    """What the issuer gave for a code."""

    claims: Mapping[str, Any]
    """Of the ID token."""
    access_token: object
    metadata: Mapping[str, Any]
    """Of the issuer."""


class CodeFlow:
    """The flow, at one issuer."""

    def __init__(
        self,
        issuer: str,
        *,
        client_id: str,
        client_secret: str,
        title: str,
        parameters: Mapping[str, str] | None = None,
        also: Mapping[str, str] | None = None,
    ) -> None:
        """`parameters` go to the authorization endpoint, `also` to that and to the token endpoint."""
        # Configuration
        self._title = title
        self._issuer = issuer
        self._client_id = client_id
        self._client_secret = client_secret
        self._also = dict(also or {})
        self._parameters = {**(parameters or {}), **self._also}
        # Process
        self._discovery = Discovery(issuer, get)
        keys = FetchedKeys(self._discovery.keys_url, get)
        self._tokens = TokenMethod(Rules(issuer, client_id), keys, algorithms=ASYMMETRIC, types=_TYPES)

    async def prefetch(self) -> None:
        """Ask the issuer about itself before somebody signs in."""
        try:
            await self._discovery.metadata()
        except Unavailable as exc:
            self._discovery.retry()
            logger.warning("Nobody can sign in with %s: its issuer doesn't answer. %s", self._title, exc.why)

    # AuthorizationRedirect

    async def begin(self, callback: str, state: str, scope: str, prompt: str = "") -> AuthorizationRedirect:
        """Where to send the browser. `prompt` counts where the flow's own parameters have none.

        Raises:
            SignInFailed: the issuer can't be used now.
        """
        endpoint = self.endpoint(await self.metadata(), "authorization_endpoint")
        kept = _Kept(new_secret(), new_secret())
        asked = {
            "response_type": "code", "client_id": self._client_id, "redirect_uri": callback, "scope": scope,
            "state": state, "nonce": kept.nonce, "code_challenge": challenge_of(kept.verifier),
            "code_challenge_method": "S256", **({"prompt": prompt} if prompt else {}), **self._parameters,
        }  # fmt: skip
        return AuthorizationRedirect(link(endpoint, asked), msgspec.json.encode(kept))

    async def metadata(self) -> dict[str, Any]:
        """What the issuer says about itself.

        Raises:
            SignInFailed: nothing, now.
        """
        try:
            return await self._discovery.metadata()
        except Unavailable as exc:
            raise SignInFailed(f"{self._title} doesn't answer. Try again later.") from exc

    def endpoint(self, metadata: Mapping[str, Any], name: str) -> str:
        """The URL of one of its endpoints.

        Raises:
            SignInFailed: it has none that can be used.
        """
        url = metadata.get(name)
        try:
            return check_url(url if isinstance(url, str) else "").geturl()
        except OutboundError as exc:
            logger.error("%s says no %s that can be used: %s", self._issuer, name, exc)
            raise SignInFailed(f"{self._title} can't be used now.") from None

    # Back

    async def finish(self, callback: Callback) -> Found:
        """What the issuer gives for the code that the browser brings.

        Raises:
            SignInFailed: nothing that can be believed.
        """
        metadata = await self.metadata()
        self._check_issuer(metadata, callback.query)
        code = code_of(callback.query, self._title)
        kept = msgspec.json.decode(callback.kept, type=_Kept)
        given = await self._exchange(metadata, code, callback.url, kept.verifier)
        return Found(await self._open(given.get("id_token"), kept.nonce), given.get("access_token"), metadata)

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
        form = {"grant_type": "authorization_code", "code": code, "redirect_uri": callback, "code_verifier": verifier,
                **self._also}  # fmt: skip
        headers: dict[str, str] = {}
        methods = metadata.get("token_endpoint_auth_methods_supported")
        if not self._client_secret:
            form["client_id"] = self._client_id
        elif not is_array(methods) or "client_secret_basic" in methods:
            # RFC 6749 §2.3.1: both are encoded as in a form first.
            pair = f"{quote(self._client_id, safe='')}:{quote(self._client_secret, safe='')}"
            headers["authorization"] = f"Basic {b64encode(pair.encode()).decode()}"
        else:
            form |= {"client_id": self._client_id, "client_secret": self._client_secret}
        found = await ask(self.endpoint(metadata, "token_endpoint"), self._title, form=form, headers=headers)
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
