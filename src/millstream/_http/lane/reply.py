"""Reply heads as bytes: status lines, the headers every reply has, and finished refusals."""

from http import HTTPStatus

from uvicorn.server import ServerState

from millstream._http.message import JSON_HEAD, Response, refusal

_PHRASES = {status.value: status.phrase.encode() for status in HTTPStatus}
CLOSE = b"connection: close\r\n"
_BODILESS = frozenset({204, 304})


class Heads:
    """Status line plus uvicorn's default headers (date, server), joined once for each status and second.

    uvicorn makes a new list of default headers every second; the list's identity says when to start again.
    """

    __slots__ = ("_known", "_lines", "_state", "source", "usual")

    def __init__(self, state: ServerState) -> None:
        self._state = state
        self._lines = b""
        self.source: list[tuple[bytes, bytes]] | None = None
        self._known: dict[int, bytes] = {}
        self.usual = b""
        """The head of a 200 with JSON, up to its length; valid while ``source is state.default_headers``."""

    def make(self, status: int) -> bytes:
        """The head for a status, up to the reply's own lines."""
        if self.source is not self._state.default_headers:
            self.source = self._state.default_headers
            self._lines = b"".join(b"%b: %b\r\n" % pair for pair in self.source)
            self._known.clear()
            self.usual = self.make(200) + JSON_HEAD + b"content-length: "
        head = self._known.get(status)
        if head is None:
            head = b"HTTP/1.1 %d %b\r\n%b" % (status, _PHRASES.get(status, b""), self._lines)
            self._known[status] = head
        return head

    def reply(self, response: Response, cors: bytes = b"", *, keep_alive: bool, bodiless: bool = False) -> bytes:
        """A whole reply; `bodiless` is one to HEAD."""
        body = response.body
        return b"%b%b%b%b%b\r\n%b" % (
            self.make(response.status),
            response.head,
            cors,
            b"" if response.status in _BODILESS else b"content-length: %d\r\n" % len(body),
            b"" if keep_alive else CLOSE,
            b"" if bodiless else body,
        )


BAD_REQUEST = refusal(400, "This is not HTTP.")
BAD_TARGET = refusal(400, "The request target is malformed.")
BAD_HOST = refusal(400, "A request needs exactly one Host header.")
CHUNKS_TOO_SMALL = refusal(400, "The body comes in too many small chunks. Send larger ones.")
UPGRADE_WITH_BODY = refusal(400, "An upgrade request cannot have a body.")
HEADER_TIMEOUT = refusal(408, "The headers came too slowly.")
BODY_TIMEOUT = refusal(408, "The body came too slowly.")
BODY_TOO_LARGE = refusal(413, "The body is too large.")
TARGET_TOO_LONG = refusal(414, "The request target is too long.")
HEADERS_TOO_LARGE = refusal(431, "The headers are too many or too large.")
TOO_MANY_BODIES = refusal(
    503, "The server is receiving too much at once. Send the request again, in one piece if you can.", retry_after="1"
)
TOO_MANY_CONNECTIONS = refusal(503, "Too many connections.", retry_after="1")
