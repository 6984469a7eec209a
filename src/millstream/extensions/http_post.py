"""POST to URLs that callers chose, without letting them reach what only the server can reach.

The name of the host is resolved for each request, every address of it is judged, no redirect is followed, and no proxy
of the environment is used.
"""

import ssl
from collections.abc import Mapping
from typing import Literal

from msgspec import Struct

from millstream._http.client.dial import AddressRefused, Judge, allow_any, guard_dial, is_public
from millstream._http.client.errors import ClientError, TargetError, TlsFailed
from millstream._http.client.fetch import request
from millstream._http.client.url import Url, parse

__all__ = ["Judge", "PostFailed", "PostReply", "Url", "allow_any", "is_public", "parse_url", "post"]


def parse_url(text: str) -> Url:
    """Return the parts of a URL.

    Raises:
        ValueError: it isn't an absolute URL, or it has a name or password.
    """
    try:
        return parse(text)
    except TargetError as error:
        raise ValueError(str(error)) from error


class PostReply(Struct, frozen=True):
    """The answer to a POST."""

    status: int
    body: bytes


class PostFailed(Exception):
    """There was no answer."""

    def __init__(self, reason: Literal["connection_refused", "timeout", "tls_error"]) -> None:
        super().__init__(reason)
        self.reason: Literal["connection_refused", "timeout", "tls_error"] = reason
        """A category, which says nothing about what an inner address answered."""


async def post(
    url: Url,
    headers: Mapping[str, str],
    body: bytes,
    *,
    judge: Judge = is_public,
    tls: ssl.SSLContext | None = None,
    seconds: float = 5.0,
    max_bytes: int = 16 * 1024,
) -> PostReply:
    """POST to a URL, and return the answer.

    Args:
        url: see `parse_url`.
        headers: all except Host and Content-Length.
        body: of the request.
        judge: which addresses may be connected to; by default those of the public Internet.
        tls: certificates to trust; those of the system by default.
        seconds: time limit, connection included.
        max_bytes: of the answer.

    Raises:
        PostFailed: there was no answer.
    """
    try:
        reply = await request(
            "POST", url, headers, body, dial=guard_dial(judge), context=tls, max_body=max_bytes, max_head=16 * 1024,
            seconds=seconds,
        )  # fmt: skip
    except TlsFailed:
        raise PostFailed("tls_error") from None
    except TimeoutError:
        raise PostFailed("timeout") from None
    except ClientError as error:
        late = isinstance(error.__cause__, TimeoutError)
        raise PostFailed("timeout" if late else "connection_refused") from None
    except (AddressRefused, OSError, UnicodeError):
        raise PostFailed("connection_refused") from None
    return PostReply(reply.status, reply.body)
