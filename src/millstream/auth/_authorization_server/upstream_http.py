"""HTTP helpers for upstreams: redirects, callbacks, and JSON requests.

URLs come from the operator or the upstream's metadata, so they may be on a private network.
"""

import logging
import re
from base64 import urlsafe_b64encode
from collections.abc import Mapping
from hashlib import sha256
from typing import Any
from urllib.parse import urlencode

import msgspec

from millstream._http.client.fetch import FetchedDocument, OutboundError, fetch
from millstream._http.client.pool import allow_any
from millstream._protocol.jsonrpc import MALFORMED
from millstream.auth._authorization_server.login_methods import SignInFailed

logger = logging.getLogger("millstream")

_MAX_TEXT = 256
_ERROR = re.compile(r"[A-Za-z0-9_.-]{1,64}")

_decode = msgspec.json.Decoder(Any).decode


async def get(url: str) -> FetchedDocument:
    """GET a URL on any network."""
    return await fetch(url, is_allowed=allow_any)


async def ask(url: str, title: str, *, form: Mapping[str, str] | None = None, headers: Mapping[str, str]) -> Any:
    """Return the JSON at a URL, or the response to a form.

    Raises:
        SignInFailed: the request failed. The reason is logged; the message contains only `title`, the upstream's name.
    """
    body = None if form is None else urlencode(form).encode()
    try:
        return _decode((await fetch(url, form=body, headers=headers, is_allowed=allow_any)).body)
    except (OutboundError, *MALFORMED) as exc:
        logger.error("A login request to %s failed: %s", url, exc)
        raise SignInFailed(f"{title} isn't responding as expected. Try again later.") from None


def link(endpoint: str, asked: Mapping[str, str]) -> str:
    """Append parameters to the query of a URL (RFC 6749 §3.1)."""
    return f"{endpoint}{'&' if '?' in endpoint else '?'}{urlencode(asked)}"


def challenge_of(verifier: str) -> str:
    """Return the code challenge of a PKCE verifier (RFC 7636 §4.2)."""
    return urlsafe_b64encode(sha256(verifier.encode()).digest()).rstrip(b"=").decode()


def code_of(query: Mapping[str, str], title: str) -> str:
    """Return the code in a callback's query.

    Raises:
        SignInFailed: the query has an error, or no code.
    """
    error, code = query.get("error", ""), query.get("code", "")
    if error == "access_denied":
        raise SignInFailed(f"You didn't allow {title} to identify you. Start again to sign in.")
    if error or not code:
        said = error if _ERROR.fullmatch(error) else "no code"
        logger.error("A login with %s failed: %s", title, said)
        raise SignInFailed(f"{title} didn't sign you in ({said}). Start again, or contact the operator of this server.")
    return code


def text(value: object) -> str:
    """Return an untrusted string; empty if it isn't a string or is too long. Truncation could change its meaning."""
    return value if isinstance(value, str) and len(value) <= _MAX_TEXT else ""
