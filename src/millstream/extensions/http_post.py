"""POST and GET for URLs chosen by callers, guarded against server-side request forgery (SSRF).

A request resolves the host name and checks its addresses. Redirects aren't followed, and proxy settings of the
environment don't apply.
"""

import ssl
from collections.abc import Mapping
from typing import Literal

from msgspec import Struct

from millstream._copies import CopyableError
from millstream._http.client import ClientError, TargetError, TlsFailed
from millstream._http.client.pool import AddressCheck, AddressRefused, allow_any, guard_dial, is_public, request
from millstream._http.client.url import Url
from millstream._http.client.url import parse_url as parse

__all__ = ["AddressCheck", "PostFailed", "PostReply", "Url", "allow_any", "is_public", "parse_url", "post"]


def parse_url(text: str) -> Url:
    """Return the parts of a URL.

    Args:
        text: An absolute URL: ``https://example.com/hook``.

    Raises:
        ValueError: It isn't an absolute URL, or it contains a user name or password.
    """
    try:
        return parse(text)
    except TargetError as error:
        raise ValueError(str(error)) from error


class PostReply(Struct, frozen=True):
    """The response to a request."""

    status: int
    body: bytes


class PostFailed(CopyableError):
    """There was no response.

    Args:
        reason: Category of the failure.
    """

    def __init__(self, reason: Literal["connection_refused", "timeout", "tls_error"]) -> None:
        super().__init__(reason)
        self.reason: Literal["connection_refused", "timeout", "tls_error"] = reason
        """Category of the failure. It doesn't reveal anything about internal addresses."""


async def post(
    url: Url,
    headers: Mapping[str, str],
    body: bytes,
    *,
    method: Literal["POST", "GET"] = "POST",
    judge: AddressCheck = is_public,
    tls: ssl.SSLContext | None = None,
    seconds: float = 5.0,
    max_bytes: int = 16 * 1024,
    owner: str = "",
) -> PostReply:
    """Send a request to a URL, and return the response.

    Args:
        url: See `parse_url`.
        headers: All except Host and Content-Length.
        body: Request body.
        method: Method of the request.
        judge: Returns whether an address is allowed, by default only public addresses are.
        tls: Context with the trusted certificates, by default the system's.
        seconds: Time limit, including the connection.
        max_bytes: Maximum size of the response.
        owner: The caller whose share of the name lookups is used (see `Share`).

    Raises:
        PostFailed: There was no response, or it's too large.
    """
    try:
        reply = await request(
            method,
            url,
            headers,
            body,
            dial=guard_dial(judge, owner),
            context=tls,
            max_body=max_bytes,
            seconds=seconds,
        )
    except TlsFailed:
        raise PostFailed("tls_error") from None
    except (AddressRefused, ClientError, OSError, UnicodeError) as error:
        late = isinstance(error, TimeoutError) or isinstance(error.__cause__, TimeoutError)
        raise PostFailed("timeout" if late else "connection_refused") from None
    return PostReply(reply.status, reply.body)
