"""The JSON of one `tools/call` and nothing else, which every floor decodes and answers.

A floor is the minimum work of its kind of server for a correct response: decode the typed request, add, encode the
typed reply. It checks no header, revision, schema or session.
"""

import msgspec
from msgspec import Struct


class Arguments(Struct, gc=False):
    a: int
    b: int


class Params(Struct, gc=False):
    name: str
    arguments: Arguments


class Call(Struct, gc=False):
    id: int
    params: Params


class Text(Struct, gc=False):
    text: str
    type: str = "text"


class Sum(Struct, gc=False):
    result: int


class Result(Struct, gc=False, rename="camel"):
    content: list[Text]
    structured_content: Sum
    result_type: str = "complete"


class Reply(Struct, gc=False):
    id: int
    result: Result
    jsonrpc: str = "2.0"


decode = msgspec.json.Decoder(Call).decode
encode = msgspec.json.Encoder().encode


def answer(body: bytes) -> bytes:
    """Return the reply to one request."""
    call = decode(body)
    total = call.params.arguments.a + call.params.arguments.b
    return encode(Reply(call.id, Result([Text(str(total))], Sum(total))))
