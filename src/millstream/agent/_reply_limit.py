"""Limits the size of a reply from an OpenAI-compatible API. A file of its own, because it loads the HTTP client."""

from collections.abc import AsyncIterator

from httpx2 import AsyncByteStream, Response

from millstream._override import override
from millstream.agent._events import ModelServerError

MAX_REPLY = 128 * 1024 * 1024
"""Maximum size of a reply, in bytes. A stream has several hundred for each token."""


class _LimitedStream(AsyncByteStream):
    def __init__(self, stream: AsyncByteStream) -> None:
        self._stream = stream
        self._size = 0

    @override
    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for data in self._stream:
            self._size += len(data)
            if self._size > MAX_REPLY:
                raise ModelServerError(f"The model's reply is larger than {MAX_REPLY // 1024**2} MiB.")
            yield data

    @override
    async def aclose(self) -> None:
        await self._stream.aclose()


async def limit_reply(response: Response) -> None:
    """Limit the body of a reply while it's read. This is a hook for HTTP clients.

    Args:
        response: The reply, whose body hasn't been read.
    """
    if isinstance(response.stream, AsyncByteStream):
        response.stream = _LimitedStream(response.stream)
