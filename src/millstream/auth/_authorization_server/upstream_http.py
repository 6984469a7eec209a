"""What all upstreams do by HTTP: send the browser there, read what it brings back, and ask for JSON.

Their URLs were written by the operator, or come from what those say, so they may be in the operator's own network.
"""

import logging
import re
from base64 import urlsafe_b64encode
from collections.abc import Mapping
from hashlib import sha256
from typing import Any
from urllib.parse import urlencode

import msgspec

from millstream._http.client.dial import allow_any
from millstream._http.client.fetch import FetchedDocument, OutboundError, fetch
from millstream.auth._authorization_server.login_methods import SignInFailed

logger = logging.getLogger("millstream")

_MAX_TEXT = 256
_ERROR = re.compile(r"[A-Za-z0-9_.-]{1,64}")

_decode = msgspec.json.Decoder(Any).decode


async def get(url: str) -> FetchedDocument:
    """GET a URL, wherever it is."""
    return await fetch(url, judge=allow_any)


async def ask(url: str, title: str, *, form: Mapping[str, str] | None = None, headers: Mapping[str, str]) -> Any:
    """The JSON at a URL, or the answer to a form.

    Raises:
        SignInFailed: there's none. The log says why; `title` is what the person knows the upstream by.
    """
    body = None if form is None else urlencode(form).encode()
    try:
        return _decode((await fetch(url, form=body, headers=headers, judge=allow_any)).body)
    except (OutboundError, UnicodeError, msgspec.DecodeError, RecursionError) as exc:
        logger.error("A sign-in failed at %s: %s", url, exc)
        raise SignInFailed(f"{title} doesn't answer as it should. Try again later.") from None


def link(endpoint: str, asked: Mapping[str, str]) -> str:
    """A URL with these parameters, after those that it has (RFC 6749 §3.1)."""
    return f"{endpoint}{'&' if '?' in endpoint else '?'}{urlencode(asked)}"


def challenge_of(verifier: str) -> str:
    """What is shown of a PKCE verifier first (RFC 7636 §4.2)."""
    return urlsafe_b64encode(sha256(verifier.encode()).digest()).rstrip(b"=").decode()


def code_of(query: Mapping[str, str], title: str) -> str:
    """The code that the browser brings.

    Raises:
        SignInFailed: it brings none.
    """
    error, code = query.get("error", ""), query.get("code", "")
    if error == "access_denied":
        raise SignInFailed(f"You haven't let {title} say who you are. Start again to sign in.")
    if error or not code:
        said = error if _ERROR.fullmatch(error) else "no code"
        logger.error("%s didn't sign somebody in: %s", title, said)
        raise SignInFailed(f"{title} didn't sign you in ({said}). Start again, or ask whoever runs this server.")
    return code


def text(value: object) -> str:
    """A text that somebody else wrote; empty for anything else. A part would mean another: too long is empty, too."""
    return value if isinstance(value, str) and len(value) <= _MAX_TEXT else ""
