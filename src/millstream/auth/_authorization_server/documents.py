"""Client ID metadata documents: the client id is the URL of a document that describes the client.

draft-ietf-oauth-client-id-metadata-document. Documents are fetched over https from public addresses, without redirects
and with a small size limit. A development server may also fetch from its own machine.
Documents are cached according to their Cache-Control; failures aren't cached.
"""

import re
from collections.abc import Callable, Mapping
from ipaddress import ip_address
from typing import Any

from millstream._http.client.fetch import FetchedDocument, OutboundError, check_url, fetch
from millstream._http.client.pool import is_public
from millstream._protocol.json_schema import is_array, is_object
from millstream._protocol.jsonrpc import MALFORMED, decoder
from millstream._recent import Recent
from millstream.auth._authorization_server.answers import check_redirect
from millstream.auth._authorization_server.records import ASSERTED, CODE, REFRESH, OAuthClient
from millstream.auth._jose import public_set
from millstream.auth._method import Unavailable
from millstream.auth._single_flight import SingleFlight

MAX_BYTES = 5 * 1024
_DEFAULT_CACHE_SECONDS = 300.0
_MAX_CACHE_SECONDS = 86_400.0
_MAX_CACHED = 512
_MAX_CONCURRENT_FETCHES = 16
TOO_MANY = "Too many client documents are being looked up. Try again in a minute."
_NO_ACCESS = (
    "If the server has no access to the internet, its operator can set metadata_documents=False in auth.issuer(…). "
    "Then, clients register instead."
)
MAX_REDIRECTS = 16
MAX_NAME = 80
_AGE = re.compile(r"(?:^|[,\s])max-age=(\d{1,9})")
_decode = decoder(dict[str, Any])


def is_document(client_id: str) -> bool:
    """Return whether a client id is the URL of a document."""
    return "://" in client_id


def judge_of(*, here: bool) -> Callable[[str], bool]:
    """Return a predicate for allowed addresses: public ones, and loopback if `here` is set."""
    return (
        (lambda address: is_public(address) or ip_address(address.partition("%")[0]).is_loopback) if here else is_public
    )


class Documents:
    """The cached documents of one worker."""

    def __init__(self, clock: Callable[[], float], *, here: bool) -> None:
        # Configuration
        self._clock = clock
        self._judge = judge_of(here=here)
        # State
        self._cache: Recent[str, tuple[float, OAuthClient]] = Recent(_MAX_CACHED)
        """URL -> expiry and client; the oldest are dropped first."""
        self._flight = SingleFlight[OAuthClient]()

    async def find(self, url: str, may_fetch: Callable[[], bool]) -> OAuthClient:
        """Return the client that a URL describes.

        Raises:
            Unavailable: The document is invalid, or can't be fetched.
        """
        kept = self._cache.get(url)
        if kept is not None and kept[0] > self._clock():
            return kept[1]
        check_id(url)
        if not self._flight.runs(url) and (len(self._flight) >= _MAX_CONCURRENT_FETCHES or not may_fetch()):
            raise Unavailable(TOO_MANY)
        return await self._flight.run(url, lambda: self._fetch(url))

    async def _fetch(self, url: str) -> OAuthClient:
        try:
            answer = await fetch(url, is_allowed=self._judge, max_bytes=MAX_BYTES)
        except OutboundError as exc:
            raise Unavailable(f"The client's metadata document couldn't be fetched. {exc} {_NO_ACCESS}") from None
        client = read_document(url, answer)
        age = _age_of(answer)
        if age > 0:
            self._cache.keep(url, (self._clock() + age, client))
        else:
            self._cache.pop(url, None)
        return client


def check_id(url: str) -> None:
    """Check that a URL is a valid client id.

    Raises:
        Unavailable: The URL isn't valid.
    """
    try:
        parts = check_url(url)
    except OutboundError as exc:
        raise Unavailable(f"The client id isn't a valid client URL. {exc}") from None
    dots = any(
        each in (".", "..") or each.lower() in ("%2e", "%2e%2e", ".%2e", "%2e.") for each in parts.path.split("/")
    )
    if parts.path in ("", "/") or "#" in url or dots:
        raise Unavailable("The client id must be a URL with a path, without a fragment or dot segments.")


def read_document(url: str, answer: FetchedDocument) -> OAuthClient:
    """Return the client that a document describes.

    Raises:
        Unavailable: The document is invalid, or describes another client.
    """
    kind = answer.headers.get(b"content-type", b"").partition(b";")[0].strip().lower()
    if kind != b"application/json" and not (kind.startswith(b"application/") and kind.endswith(b"+json")):
        raise Unavailable("The client's metadata document is not JSON.")
    try:
        said = _decode(answer.body)
    except MALFORMED:
        raise Unavailable("The client's metadata document is not JSON.") from None
    if said.get("client_id") != url:
        raise Unavailable("The client's metadata document describes another client.")
    if "client_secret" in said or "client_secret_expires_at" in said:
        raise Unavailable("The client's metadata document is public, but contains a secret. Remove it.")
    try:
        return client_of(url, said, "document", methods=("none", "private_key_jwt"), default="none")
    except ValueError as exc:
        raise Unavailable(f"The client's metadata document is invalid. {exc}") from None


def client_of(
    id: str, said: Mapping[str, Any], source: str, *, methods: tuple[str, ...], default: str, secret_hash: str = ""
) -> OAuthClient:
    """Return a client from its metadata (RFC 7591 §2).

    Raises:
        ValueError: The metadata is invalid; `RedirectRefused` for a redirect URI.
    """
    method = said.get("token_endpoint_auth_method", default)
    if method not in methods:
        raise ValueError(f"token_endpoint_auth_method must be one of {', '.join(methods)}.")
    kind = said.get("application_type")
    native = {"native": True, "web": False}.get(kind) if isinstance(kind, str) else None
    uris = said.get("redirect_uris")
    if not is_array(uris) or not 0 < len(uris) <= MAX_REDIRECTS:
        raise RedirectRefused(f"redirect_uris must be a list of 1 to {MAX_REDIRECTS} URIs.")
    for each in uris:
        try:
            check_redirect(each if isinstance(each, str) else "", native=native)
        except ValueError as exc:
            raise RedirectRefused(str(exc)) from None
    grants = said.get("grant_types", [CODE])
    if not is_array(grants) or CODE not in grants:
        raise ValueError("grant_types must include authorization_code.")
    keys, keys_url = _keys_of(said) if method == "private_key_jwt" else (None, "")
    name = said.get("client_name")
    if said.get("dpop_bound_access_tokens", False) is not False:
        raise ValueError("Sender-constrained tokens (dpop_bound_access_tokens) aren't supported.")
    return OAuthClient(
        id,
        name=_plain(name) if isinstance(name, str) else "",
        redirect_uris=tuple(str(each) for each in uris),
        method=str(method),
        secret_hash=secret_hash if str(method).startswith("client_secret") else "",
        grant_types=tuple(each for each in (CODE, REFRESH, ASSERTED) if each in grants),
        keys=keys,
        keys_url=keys_url,
        source=source,
    )


class RedirectRefused(ValueError):
    """A redirect URI isn't allowed."""


def _keys_of(said: Mapping[str, Any]) -> tuple[Mapping[str, Any] | None, str]:
    keys, url = said.get("jwks"), said.get("jwks_uri")
    if is_object(keys) and url is None:
        return public_set(keys), ""
    if isinstance(url, str) and keys is None:
        try:
            check_url(url)
        except OutboundError as exc:
            raise ValueError(f"jwks_uri is invalid. {exc}") from None
        return None, url
    raise ValueError("private_key_jwt requires either jwks or jwks_uri.")


def _plain(name: str) -> str:
    """Return a name without control characters and characters that reverse text."""
    return " ".join("".join(each if each.isprintable() else " " for each in name).split())[:MAX_NAME]


def _age_of(answer: FetchedDocument) -> float:
    control = answer.headers.get(b"cache-control", b"").decode("latin-1").lower()
    if "no-store" in control or "no-cache" in control:
        return 0.0
    age = _AGE.search(control)
    return min(float(age[1]), _MAX_CACHE_SECONDS) if age else _DEFAULT_CACHE_SECONDS
