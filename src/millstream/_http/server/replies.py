"""Reply heads as bytes: status lines, the headers that every reply has, and prepared refusals."""

from email.utils import formatdate
from http import HTTPStatus

from millstream._http.message import JSON_HEAD, Response, refusal

_PHRASES = {status.value: status.phrase.encode() for status in HTTPStatus}
CLOSE = b"connection: close\r\n"
_BODILESS = frozenset({204, 304})


class ReplyHeads:
    """Reply heads with status line and date, built once per status and second."""

    def __init__(self) -> None:
        self._date = b""
        self._heads: dict[int, bytes] = {}
        self.usual = b""
        """The head of a 200 with JSON, up to its length."""
        self.tick()

    def tick(self) -> None:
        """Update the date of later replies."""
        date = b"date: %b\r\n" % formatdate(usegmt=True).encode()
        if date != self._date:
            self._date = date
            self._heads.clear()
            self.usual = self.make(200) + JSON_HEAD + b"content-length: "

    def make(self, status: int) -> bytes:
        """Return the head for a status, up to the reply's own lines."""
        head = self._heads.get(status)
        if head is None:
            head = self._heads[status] = b"HTTP/1.1 %d %b\r\n%b" % (status, _PHRASES.get(status, b""), self._date)
        return head

    def reply(self, response: Response, cors: bytes = b"", *, keep_alive: bool, bodiless: bool = False) -> bytes:
        """Return a complete reply. `bodiless` is for HEAD."""
        body = response.body
        return b"%b%b%b%b%b\r\n%b" % (
            self.make(response.status),
            response.head,
            cors,
            b"" if response.status in _BODILESS else b"content-length: %d\r\n" % len(body),
            b"" if keep_alive else CLOSE,
            b"" if bodiless else body,
        )


NOT_FOUND = refusal(404, "Not found.")
BAD_REQUEST = refusal(400, "The request isn't valid HTTP.")
BAD_TARGET = refusal(400, "The request target is malformed.")
BAD_HOST = refusal(400, "A request needs exactly one Host header.")
CHUNKS_TOO_SMALL = refusal(400, "The body arrives in too many small chunks. Send larger ones.")
UPGRADE_WITH_BODY = refusal(400, "An upgrade request must not have a body.")
HEADER_TIMEOUT = refusal(408, "The headers arrived too slowly.")
BODY_TIMEOUT = refusal(408, "The body arrived too slowly.")
BODY_TOO_LARGE = refusal(413, "The body is too large.")
TARGET_TOO_LONG = refusal(414, "The request target is too long.")
HEADERS_TOO_LARGE = refusal(431, "The request has too many headers, or its headers are too large.")
TOO_MANY_BODIES = refusal(
    503, "The server is receiving too much data. Retry the request, in one piece if possible.", retry_after="1"
)
TOO_MANY_CONNECTIONS = refusal(503, "The server has too many connections. Retry later.", retry_after="1")
TOO_MANY_FROM_ADDRESS = refusal(
    503, "Your address has too many of the server's connections. Close some, then retry.", retry_after="1"
)
