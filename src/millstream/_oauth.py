"""Parts of OAuth messages that our authorization server, its sign-ins, and the client share."""

from base64 import b64encode, urlsafe_b64encode
from collections.abc import Mapping
from hashlib import sha256
from urllib.parse import quote, urlencode


def s256(text: str) -> str:
    """Return the hash of a code verifier (RFC 7636 §4.2) or of an access token (RFC 9449 §4.2)."""
    return urlsafe_b64encode(sha256(text.encode()).digest()).rstrip(b"=").decode()


def authorization_url(endpoint: str, parameters: Mapping[str, str]) -> str:
    """Append parameters to the query of an authorization endpoint (RFC 6749 §3.1)."""
    return f"{endpoint}{'&' if '?' in endpoint else '?'}{urlencode(parameters)}"


def basic_credentials(client_id: str, secret: str) -> str:
    """Return the header that authenticates a client. Both parts are form-encoded first (RFC 6749 §2.3.1)."""
    pair = f"{quote(client_id, safe='')}:{quote(secret, safe='')}"
    return f"Basic {b64encode(pair.encode()).decode()}"
