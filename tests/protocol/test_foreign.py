from msgspec import Struct

from millstream._protocol.content import Image
from millstream._protocol.foreign import foreign_decoder
from millstream._protocol.jsonrpc import Json


class Drawing(Struct, tag="drawing", tag_field="type"):
    """A kind of content whose `data` isn't base64, unlike that of an image."""

    data: Json


class Drawings(Struct):
    content: list[Image | Drawing]


def test_each_kind_of_content_is_repaired_by_its_own_members() -> None:
    image = b'{"type":"image","mimeType":"image/png","data":"_w"}'
    read = foreign_decoder(Drawings)(b'{"content":[%b,{"type":"drawing","data":[]}]}' % image)
    assert read.content == [Image(data=b"\xff", mime_type="image/png"), Drawing({})]
