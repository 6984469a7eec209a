"""One call, forwarded to an upstream: progress, cancellation, errors, and the result as it came."""

import logging
from collections.abc import Mapping
from time import monotonic
from typing import TYPE_CHECKING

from millstream._protocol.errors import INTERNAL_ERROR, ProtocolError, ToolError
from millstream._server.calls.context import Context
from millstream.client._errors import ClientError, Failure, NoAnswer
from millstream.client._requests import Ask
from millstream.gateway.upstream import Upstream

if TYPE_CHECKING:
    from millstream._server.calls.call import Call

logger = logging.getLogger("millstream.gateway")
_NO_HEADERS: Mapping[str, str] = {}


async def forward(
    call: "Call",
    upstream: Upstream,
    method: str,
    params: bytes,
    name: str,
    *,
    headers: Mapping[str, str] = _NO_HEADERS,
) -> bytes:
    """Send a request to an upstream and return the raw JSON object of its result.

    Args:
        call: of the client.
        upstream: where to send it.
        method: of the request.
        params: an encoded object.
        name: of the tool or prompt, or the URI, as the upstream has it.
        headers: more HTTP headers.

    Raises:
        ProtocolError: the upstream's own error, or for methods other than ``tools/call``, that there was no answer.
        ToolError: there was no answer.
    """
    key = upstream.key(call)
    links = upstream.links
    try:
        link = links.ready(key) or await links.open(key)
        ask = Ask(
            method=method,
            params=params,
            name=name,
            headers=headers,
            progress=None if call.token is None and call.tee is None else Context(call).progress,
        )
        link.calls += 1
        try:
            return await link.conversation.requests.ask(ask)
        finally:
            link.calls -= 1
            link.last_used = monotonic()
    except Failure as exc:
        raise ProtocolError(exc.code, exc.message, exc.data) from None
    except ClientError as exc:
        raise unanswered(call, upstream, exc) from None


def unanswered(call: "Call", upstream: Upstream, exc: ClientError) -> ToolError | ProtocolError:
    """Return the error for a call without an answer. It has nothing of the address or the credentials."""
    logger.warning("%s %s of the upstream %s failed: %s", call.method, call.name, upstream.config.name, exc)
    name = upstream.config.name
    if isinstance(exc, NoAnswer):
        text = f"The server {name!r} behind this gateway didn't answer in time."
    else:
        text = f"The server {name!r} behind this gateway can't be reached now. Try again later."
    return ToolError(text) if call.method == "tools/call" else ProtocolError(INTERNAL_ERROR, text)
