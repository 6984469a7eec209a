"""Corrects replies of APIs that deviate from OpenAI's chat completions, before the library reads them.

The library merges parallel calls with the same index and can't distinguish a truncated reply from one without a finish
reason. This module turns the bytes of a reply into a well-formed stream.
"""

import json
from codecs import BOM_UTF8
from collections.abc import AsyncIterator
from typing import Any

from httpx2 import AsyncByteStream, Response

from millstream._override import override
from millstream.agent._events import ModelServerError
from millstream.protocol import MALFORMED, Json, is_array, is_object

_DONE = b"data: [DONE]\n\n"
MAX_REPLY = 128 * 1024 * 1024
"""Maximum size of a reply, in bytes. A stream has several hundred for each token."""
_MAX_CHECKED = 16 * 1024 * 1024
"""Maximum characters of arguments to decode, to find where a call ends."""
_COUNTS = ("prompt_tokens", "completion_tokens", "total_tokens")
_REASONS = ("error", "errors", "message", "detail", "msg", "error_msg", "base_resp", "status_msg")
"""Members of an error that contain its text."""


_TAGS = "<think>", "</think>"


class _Call:
    """A tool call that arrives in pieces."""

    def __init__(self, number: int, id: str, name: str) -> None:
        self.number = number
        self.id = id
        self.name = name
        self.size = 0
        self._pieces: list[str] = []

    def add(self, arguments: str) -> None:
        """Add a piece of the arguments."""
        self._pieces.append(arguments)
        self.size += len(arguments)

    @property
    def arguments(self) -> str:
        self._pieces = ["".join(self._pieces)]
        return self._pieces[0]


class StreamRepair:
    """The state of one reply."""

    def __init__(self) -> None:
        self._pieces: list[bytes] = []
        self._is_json: bool | None = None
        self._calls: list[_Call] = []
        self._by_index: dict[object, _Call] = {}
        self._has_choice = self._is_finished = False
        self._size = self._checked = 0
        self._tag: str | None = _TAGS[0]
        """Tag that begins or ends thoughts and comes next, or None if there are no more thoughts."""
        self._text = ""
        """End of the text so far, if it may be a part of this tag."""

    def feed(self, data: bytes) -> bytes:
        """Process more bytes of the reply and return the bytes to send.

        Raises:
            ModelServerError: The reply is too large.
        """
        self._size += len(data)
        if self._size > MAX_REPLY:
            raise ModelServerError(f"The model's reply is larger than {MAX_REPLY // 1024**2} MiB.")
        if self._is_json is None and data.strip():
            data = data.removeprefix(BOM_UTF8)
            self._is_json = data.lstrip()[:1] == b"{"  # a complete reply, although a stream was requested
        self._pieces.append(data)
        if self._is_json or b"\n" not in data:
            return b""
        *lines, rest = b"".join(self._pieces).split(b"\n")
        self._pieces = [rest]
        return b"".join([self._repair_line(line) for line in lines])

    def end(self) -> bytes:
        """Return the buffered rest of the stream, repaired."""
        rest = b"".join(self._pieces)
        if not self._is_json:
            return self._repair_line(rest) if rest else b""
        lines = rest.split(b"\n")
        if not all(line.strip()[:1] == b"{" and line.strip()[-1:] == b"}" for line in lines if line.strip()):
            lines = [b" ".join(lines)]  # the reply isn't one document per line
        return b"".join([self._repair_line(b"data: " + line) for line in lines]) + self._finish() + _DONE

    def _repair_line(self, line: bytes) -> bytes:
        name, _, data = line.strip().partition(b":")
        data = data.strip()
        if name != b"data" or not data:  # the library treats a blank line after an id as an event
            return b"\n"
        if data.strip(b'"').upper().startswith(b"[DONE]"):
            return self._finish() + _DONE
        try:
            chunk: Any = json.loads(data)
        except MALFORMED:
            return line + b"\n"
        if not is_object(chunk):  # the server keeps the connection open
            return b"\n"
        self._repair(chunk)
        return b"".join(map(_encode, self._split_thoughts(chunk)))

    def _split_thoughts(self, chunk: Json) -> list[Json]:
        """Return a chunk as several ones, so that tags of thoughts are alone, as the library expects them.

        Only a reply that begins with a tag has thoughts, because text can be about tags.
        """
        choice = next((each for each in chunk["choices"] if not each.get("index")), None)
        if choice is None or self._tag is None:
            return [chunk]
        delta = choice["delta"]
        content = delta.get("content")
        self._text += content if isinstance(content, str) else ""
        is_last = bool(choice.get("finish_reason") or delta.get("tool_calls"))
        pieces = list[str]()
        while self._tag is not None:
            before, tag, after = self._text.partition(self._tag)
            if tag and (self._tag == _TAGS[1] or not before.strip()):
                pieces += [before.lstrip() if self._tag == _TAGS[0] else before, tag]
                self._text, self._tag = after, _TAGS[1] if self._tag == _TAGS[0] else None
                continue
            kept = 0 if is_last else self._beginning_of_tag()
            if self._tag == _TAGS[0] and not kept and self._text.strip():
                self._tag = None  # the answer begins without thoughts
            pieces.append(self._text[: len(self._text) - kept])
            self._text = self._text[len(self._text) - kept :]
            break
        if self._tag is None:
            pieces.append(self._text)
            self._text = ""
        pieces = [each for each in pieces if each]
        if isinstance(content, str):
            delta["content"] = ""
        elif not pieces:
            return [chunk]
        rest = {name: value for name, value in chunk.items() if name != "usage"}
        return [*({**rest, "choices": [{"index": 0, "delta": {"content": each}}]} for each in pieces), chunk]

    def _beginning_of_tag(self) -> int:
        """Return how many characters at the end of the text may begin the tag."""
        assert self._tag is not None  # noqa: S101  the caller has checked it
        if self._tag == _TAGS[0]:
            return len(self._text) if self._tag.startswith(self._text.strip()) else 0
        return next((size for size in range(len(self._tag) - 1, 0, -1) if self._text.endswith(self._tag[:size])), 0)

    def _finish(self) -> bytes:
        """Return a chunk with the finish reason that a complete reply lacks."""
        if self._is_finished or not self._has_choice:
            return b""
        reason = "tool_calls" if self._calls else "stop"
        choice: Json = {"index": 0, "delta": {}, "finish_reason": reason}
        last = {"id": "", "object": "chat.completion.chunk", "created": 0, "model": "", "choices": [choice]}
        return b"".join(map(_encode, self._split_thoughts(last)))

    def _repair(self, chunk: Json) -> None:
        error, usage, choices = chunk.pop("error", None), chunk.pop("usage", None), chunk.get("choices")
        if not (error or usage or self._has_choice or is_array(choices)):
            error = _find_reason(chunk)
        if error:
            reason = _find_reason(error)
            chunk["error"] = {**(error if is_object(error) else {}), **({"message": reason} if reason else {})}
        if is_object(usage):
            chunk["usage"] = {**usage, **{name: usage.get(name) or 0 for name in _COUNTS}}
        found = chunk["choices"] = [each for each in choices if is_object(each)] if is_array(choices) else []
        for choice in found:
            self._has_choice = True
            self._is_finished = self._is_finished or bool(choice.get("finish_reason"))
            choice.pop("logprobs", None)
            delta = choice.get("delta")
            if not is_object(delta):
                message, text = choice.get("message"), delta or choice.get("text")
                delta = choice["delta"] = message if is_object(message) else {"content": text} if text else {}
            content = delta.get("content")
            if is_object(content) or is_array(content):
                parts = content if is_array(content) else [content]
                texts = (each.get("text") for each in parts if is_object(each) and each.get("type", "text") == "text")
                delta["content"] = "".join(each for each in texts if isinstance(each, str)) or None
            calls, only = delta.get("tool_calls"), delta.pop("function_call", None)
            if is_object(calls):
                calls = [calls]
            elif not calls and is_object(only):  # the form from before models could make several calls
                calls = [{"index": 0, "function": only}]
            if is_array(calls):
                delta["tool_calls"] = [each for each in calls if is_object(each) and self._repair_call(each)]

    def _repair_call(self, piece: Json) -> bool:
        """Give a chunk the index of the call that it belongs to. Return False if it repeats an earlier chunk."""
        function = piece.get("function")
        if not is_object(function):
            function = piece["function"] = {name: piece[name] for name in ("name", "arguments") if name in piece}
        id, index, name = str(piece.get("id") or ""), piece.get("index"), str(function.get("name") or "").strip()
        arguments = next((function[key] for key in ("arguments", "parameters", "input") if key in function), None)
        if name:
            function["name"] = name
        if arguments is not None:
            arguments = arguments if isinstance(arguments, str) else json.dumps(arguments)
            function["arguments"] = arguments
        if id:
            piece["id"] = id  # some servers send a number
        last = self._calls[-1] if self._calls else None
        call = last if index is None else self._by_index.get(str(index))
        if call and arguments and id == call.id and len(arguments) == call.size and self._is_whole(call, arguments):
            return False
        differs = call is not None and bool(id and call.id and id != call.id)
        if (
            arguments
            and arguments.strip() == "{}"
            and (not (call and call.size) or (not name and self._is_whole(call)))
        ):
            arguments = function["arguments"] = ""  # some servers send an empty object before or after the real one
        if call is None or (name and (differs or (arguments and self._is_whole(call)))):
            call = _Call(len(self._calls), id, name)
            self._calls.append(call)
            self._by_index[str(index)] = call
        else:
            piece.pop("id", None)
            if name == call.name:
                function.pop("name", None)
        call.add(arguments or "")
        piece["index"] = call.number
        return True

    def _is_whole(self, call: _Call, again: str = "") -> bool:
        """Return whether the arguments of a call are complete and equal to `again`."""
        self._checked += call.size
        if self._checked > _MAX_CHECKED or (again and again != call.arguments):
            return False
        try:
            return call.arguments.rstrip().endswith("}") and is_object(json.loads(call.arguments))
        except MALFORMED:
            return False


def _find_reason(value: object, depth: int = 8) -> str:
    """Return the text of an error, whose location depends on the API."""
    if depth and is_object(value):
        value = [value.get(name) for name in _REASONS]
    if depth and is_array(value):
        return next(filter(None, (_find_reason(each, depth - 1) for each in value)), "")
    return value if isinstance(value, str) else ""


def _encode(chunk: object) -> bytes:
    return b"data: " + json.dumps(chunk).encode() + b"\n\n"


class _RepairedStream(AsyncByteStream):
    def __init__(self, stream: AsyncByteStream) -> None:
        self._stream = stream
        self._repair = StreamRepair()
        self._is_read = False

    @override
    async def __aiter__(self) -> AsyncIterator[bytes]:
        # The library iterates again after the last event, to use the connection for the next request.
        if not self._is_read:
            async for data in self._stream:
                yield self._repair.feed(data)
            self._is_read = True
            yield self._repair.end()

    @override
    async def aclose(self) -> None:
        await self._stream.aclose()


async def repair_reply(response: Response) -> None:
    """Correct the body of a reply while it's read. This is a hook for HTTP clients that request uncompressed replies.

    Args:
        response: The reply, whose body hasn't been read.
    """
    stream = response.stream
    if (
        response.status_code == 200
        and "content-encoding" not in response.headers
        and isinstance(stream, AsyncByteStream)
    ):
        response.stream = _RepairedStream(stream)
