"""The tool result for an API's response, by its status and its content type."""

import re
from collections.abc import Mapping
from http.client import responses
from typing import Any
from urllib.parse import quote

import msgspec
from msgspec import UNSET, Struct

from millstream import Audio, EmbeddedResource, Image, ResourceContents, ToolError, ToolResult
from millstream._gateway.apis.request import BINARY, JSON, RequestTemplate, is_json, is_text, plain_media
from millstream._protocol.foreign import charset_of, decode_text, repair_json
from millstream._protocol.jsonrpc import MALFORMED, exceeds_limits
from millstream._server.functions.problems import MAX_DECIDING_STEPS, find_problems, problem_text
from millstream._text import pluralize
from millstream.protocol import Confidential, ToolUnavailable, encode, is_object, shorten

MAX_DEPTH = 64
"""Maximum depth of a document, and of a response that's read as JSON."""
_MAX_ERROR_TEXT = 4000
"""Maximum characters of an error body in a message."""
_PAGING = re.compile(r"link|location|content-range|x-(?:next|prev|total|page|per-page|pagination|cursor)[a-z-]*")
"""Headers that callers need for the next request."""
_FILE = re.compile(r"(?:image|audio|video|font|model)/.*|application/(?:pdf|postscript|zip|gzip)")
"""Media types of files, which may consist of ASCII characters only."""
HEADERS_KEY = "millstream.gateway/headers"
"""Member of a result's `_meta` with these headers."""


class ApiReply(Confidential, Struct, frozen=True):
    """An API's response."""

    status: int
    headers: Mapping[str, str]
    """Values by lower-case name."""
    content: bytes

    @property
    def media(self) -> str:
        """The content type without parameters."""
        return plain_media(self.headers.get("content-type", ""))

    @property
    def coding(self) -> str:
        """The compression of the body that wasn't undone, or empty."""
        return self.headers.get("content-encoding", "").lower().removeprefix("identity")

    @property
    def text(self) -> str:
        """The body in its charset. Bytes that don't belong there are replaced."""
        return decode_text(self.content, charset_of(self.headers.get("content-type", "")))

    def read_json(self) -> tuple[Any, str] | None:
        """Return the value of a JSON body, and its text, which keeps numbers as the API wrote them.

        Return None for a body of a different type. JSON declared as text is also read if it's an object or array.
        """
        media, content = self.media, self.content.strip()
        looks_like_json = content[:1] in (b"{", b"[") or content[:3] == b"\xef\xbb\xbf"
        if not content or not (is_json(media) or (looks_like_json and (not media or is_text(media)))):
            return None
        if exceeds_limits(content, MAX_DEPTH):
            return None
        try:
            return msgspec.json.decode(content), msgspec.json.format(content, indent=-1).decode()
        except MALFORMED:
            pass
        try:  # NaN, lone surrogates, a byte order mark, or another charset
            repaired = repair_json(self.text)
            return msgspec.json.decode(repaired), repaired.decode()
        except MALFORMED:
            return None

    @property
    def error_text(self) -> str:
        """The error text for the model: the status, the API's own message, and when to try again."""
        status, headers, found = self.status, self.headers, self.read_json()
        body = found[1] if found else self.text if is_readable(self) else f"({self.media})"
        parts = [
            f"HTTP error {status}: {responses.get(status, '')}".rstrip(": "),
            shorten(body.strip(), _MAX_ERROR_TEXT),
        ]
        if 300 <= status < 400 and "location" in headers:
            parts.append(f"It redirects to {shorten(headers['location'], 200)}.")
        if when := headers.get("retry-after", "").strip():
            parts.append(
                f"Try again in {pluralize(int(when), 'second')}."
                if when.isdecimal()
                else f"Try again after {when[:60]}."
            )
        return " - ".join(filter(None, parts))


def is_readable(reply: ApiReply) -> bool:
    """Return whether a body is text: by its content type, or because it's UTF-8."""
    media = reply.media
    if not reply.coding and (is_text(media) or is_json(media)):
        return True
    if reply.coding or _FILE.fullmatch(media):
        return False
    try:
        return "\0" not in reply.content.decode()
    except UnicodeDecodeError:
        return False


def check_reply(reply: ApiReply) -> ApiReply:
    """Return a response unless it's an error or a redirect.

    Raises:
        ToolError: The response is an error or a redirect, or it's still compressed.
    """
    if not 200 <= reply.status < 300:
        raise (ToolUnavailable if reply.status >= 500 else ToolError)(reply.error_text)
    if reply.content and reply.coding:
        raise ToolError(f"The API compressed its response with {reply.coding[:40]!r}, and it can't be read.")
    return reply


def result_of(operation: RequestTemplate, reply: ApiReply) -> ToolResult:
    """Return the tool result for a successful response."""
    found, headers = reply.read_json(), {name: text for name, text in reply.headers.items() if _PAGING.fullmatch(name)}
    meta = {HEADERS_KEY: headers} if headers else None
    if operation.output_schema is None:
        if found is None:
            return ToolResult([content_of(operation.path, reply)] if reply.content else [], meta=meta)
        value, text = found
        return ToolResult(text, value if is_object(value) else UNSET, meta=meta)
    value = found[0] if found else reply.text if is_readable(reply) else None
    structured: Any = {"result": value} if operation.wrapped else value
    if problems := find_problems(operation.output_schema, structured, formats=False, steps=MAX_DECIDING_STEPS):
        why = problem_text(problems, whole="it")
        about = f"The response doesn't match the API's own document ({why}). This is the response:"
        return ToolResult([about, content_of(operation.path, reply)], is_error=True, meta=meta)
    return ToolResult(encode(structured).decode(), structured, meta=meta)


def content_of(path: str, reply: ApiReply) -> str | Image | Audio | EmbeddedResource:
    """Return a body as content: an image, audio, text, or else an embedded resource."""
    if is_readable(reply):
        return reply.text
    kind = reply.media.partition("/")[0]
    if kind in ("image", "audio"):
        return (Image if kind == "image" else Audio)(reply.content, reply.media)
    return EmbeddedResource(resource=contents_of(f"api:{quote(path)}", reply))


def contents_of(uri: str, reply: ApiReply) -> ResourceContents:
    """Return a body as the contents of a resource."""
    if is_readable(reply):
        return ResourceContents(uri, reply.media or JSON, text=reply.text)
    return ResourceContents(uri, reply.media or BINARY, blob=reply.content)
