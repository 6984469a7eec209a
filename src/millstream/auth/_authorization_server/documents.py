"""Clients that describe themselves: the client id is the URL of a document.

draft-ietf-oauth-client-id-metadata-document. The document is asked for by the one outbound fetcher: https of public
addresses, no redirects, few bytes. A server under development, whose own URL is of this machine, asks this machine,
too. What was found is kept as long as the document allows; what failed is not.
"""

import re
from collections import OrderedDict
from collections.abc import Callable, Mapping
from ipaddress import ip_address
from typing import Any

import msgspec

from millstream._http.client.dial import is_public
from millstream._http.client.fetch import FetchedDocument, OutboundError, check_url, fetch
from millstream._http.hosts import is_loopback
from millstream._http.message import HttpRequest, peer_network
from millstream._limits.gcra import Rate
from millstream._limits.global_limiter import GlobalLimiter
from millstream._limits.store_limiter import StoreLimiter
from millstream._protocol.json_schema import is_array, is_object
from millstream.auth._authorization_server.records import ASSERTED, CODE, REFRESH, Client
from millstream.auth._authorization_server.redirects import check_redirect
from millstream.auth._jose import public_set
from millstream.auth._method import Unavailable
from millstream.auth._single_flight import SingleFlight

MAX_BYTES = 5 * 1024
_KEPT = 300.0
_LONGEST = 86_400.0
_MAX_KEPT = 512
_AT_ONCE = 16
_LOOKUPS = Rate(60, 60)
"""Documents that one address has us ask for, and sets of keys that these name."""
TOO_MANY = "Too many clients are looked up just now. Try again in a minute."
MAX_REDIRECTS = 16
MAX_NAME = 80
_AGE = re.compile(r"(?:^|[,\s])max-age=(\d{1,9})")
_decode = msgspec.json.Decoder(dict[str, Any]).decode


def is_document(client_id: str) -> bool:
    """Whether this is a URL and not a name."""
    return "://" in client_id


def judge_of(*, here: bool) -> Callable[[str], bool]:
    """Which addresses may be asked: public ones; under development, those of this machine, too."""
    return (
        (lambda address: is_public(address) or ip_address(address.partition("%")[0]).is_loopback) if here else is_public
    )


class Lookups:
    """Who may have the server ask for documents, and how often."""

    def __init__(self, *, here: bool, pool: Callable[[], StoreLimiter | None]) -> None:
        """`here`: this machine is asked, too; so only those who are on it may have that done."""
        self._here = here
        self._limiter = GlobalLimiter("client-lookup", _LOOKUPS, pool)

    def by(self, request: HttpRequest) -> Callable[[], bool]:
        """Whether whoever makes a request may, asked when it comes to that."""
        return lambda: (
            not (self._here and not is_loopback(request.peer)) and self._limiter.report(peer_network(request.peer)) <= 0
        )


class Documents:
    """The documents, as one worker has them."""

    def __init__(self, clock: Callable[[], float], *, here: bool) -> None:
        # Configuration
        self._clock = clock
        self._judge = judge_of(here=here)
        # Process
        self._kept: OrderedDict[str, tuple[float, Client]] = OrderedDict()
        """URL -> until when it counts, and the client; the oldest go first."""
        self._flight = SingleFlight[Client]()

    async def find(self, url: str, may_fetch: Callable[[], bool]) -> Client:
        """The client that a URL describes.

        Raises:
            Unavailable: it describes none, or cannot be asked now.
        """
        kept = self._kept.get(url)
        if kept is not None and kept[0] > self._clock():
            return kept[1]
        check_id(url)
        if not self._flight.runs(url) and (len(self._flight) >= _AT_ONCE or not may_fetch()):
            raise Unavailable(TOO_MANY)
        return await self._flight.run(url, lambda: self._fetch(url))

    async def _fetch(self, url: str) -> Client:
        try:
            answer = await fetch(url, judge=self._judge, max_bytes=MAX_BYTES)
        except OutboundError as exc:
            raise Unavailable(f"The client's own description can't be read. {exc}") from None
        client = read_document(url, answer)
        age = _age_of(answer)
        self._kept.pop(url, None)
        if age > 0:
            while len(self._kept) >= _MAX_KEPT:
                self._kept.popitem(last=False)
            self._kept[url] = (self._clock() + age, client)
        return client


def check_id(url: str) -> None:
    """See whether a URL can be a client's id.

    Raises:
        Unavailable: it cannot.
    """
    try:
        parts = check_url(url)
    except OutboundError as exc:
        raise Unavailable(f"The client id can't be a client's URL. {exc}") from None
    dots = any(
        each in (".", "..") or each.lower() in ("%2e", "%2e%2e", ".%2e", "%2e.") for each in parts.path.split("/")
    )
    if parts.path in ("", "/") or "#" in url or dots:
        raise Unavailable("The client id is a URL with a path, without a fragment or dots for segments.")


def read_document(url: str, answer: FetchedDocument) -> Client:
    """The client that a document describes.

    Raises:
        Unavailable: it describes none, or another.
    """
    kind = answer.headers.get(b"content-type", b"").partition(b";")[0].strip().lower()
    if kind != b"application/json" and not (kind.startswith(b"application/") and kind.endswith(b"+json")):
        raise Unavailable("The client's own description is not JSON.")
    try:
        said = _decode(answer.body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise Unavailable("The client's own description is not JSON.") from None
    if said.get("client_id") != url:
        raise Unavailable("The client's own description is of another client.")
    if "client_secret" in said or "client_secret_expires_at" in said:
        raise Unavailable("The client's own description has a secret, which everybody can read there.")
    try:
        return client_of(url, said, "document", methods=("none", "private_key_jwt"), default="none")
    except ValueError as exc:
        raise Unavailable(f"The client's own description can't be used. {exc}") from None


def client_of(
    id: str, said: Mapping[str, Any], source: str, *, methods: tuple[str, ...], default: str, secret_hash: str = ""
) -> Client:
    """A client by what it says of itself (RFC 7591 §2).

    Raises:
        ValueError: it says something that cannot be. `RedirectRefused` where that is a redirect URI.
    """
    method = said.get("token_endpoint_auth_method", default)
    if method not in methods:
        raise ValueError(f"token_endpoint_auth_method can be {', '.join(methods)}.")
    kind = said.get("application_type")
    native = {"native": True, "web": False}.get(kind) if isinstance(kind, str) else None
    uris = said.get("redirect_uris")
    if not is_array(uris) or not 0 < len(uris) <= MAX_REDIRECTS:
        raise RedirectRefused(f"redirect_uris is a list of up to {MAX_REDIRECTS}.")
    for each in uris:
        try:
            check_redirect(each if isinstance(each, str) else "", native=native)
        except ValueError as exc:
            raise RedirectRefused(str(exc)) from None
    grants = said.get("grant_types", [CODE])
    if not is_array(grants) or CODE not in grants:
        raise ValueError("grant_types has authorization_code, since a person signs in.")
    keys, keys_url = _keys_of(said) if method == "private_key_jwt" else (None, "")
    name = said.get("client_name")
    if said.get("dpop_bound_access_tokens", False) is not False:
        raise ValueError("Tokens bound to a key (dpop_bound_access_tokens) aren't supported.")
    return Client(
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
    """A redirect URI cannot be one."""


def _keys_of(said: Mapping[str, Any]) -> tuple[Mapping[str, Any] | None, str]:
    keys, url = said.get("jwks"), said.get("jwks_uri")
    if is_object(keys) and url is None:
        return public_set(keys), ""
    if isinstance(url, str) and keys is None:
        try:
            check_url(url)
        except OutboundError as exc:
            raise ValueError(f"jwks_uri can't be used. {exc}") from None
        return None, url
    raise ValueError("For private_key_jwt, either jwks or jwks_uri says the keys.")


def _plain(name: str) -> str:
    """A name without what could hide or turn text around."""
    return " ".join("".join(each if each.isprintable() else " " for each in name).split())[:MAX_NAME]


def _age_of(answer: FetchedDocument) -> float:
    control = answer.headers.get(b"cache-control", b"").decode("latin-1").lower()
    if "no-store" in control or "no-cache" in control:
        return 0.0
    age = _AGE.search(control)
    return min(float(age[1]), _LONGEST) if age else _KEPT
