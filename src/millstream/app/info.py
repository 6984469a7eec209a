"""What a server says about itself."""

from msgspec import Struct

from millstream.protocol.content import Icon


class Info(Struct, frozen=True, omit_defaults=True, rename="camel"):
    """Title, description, website and icons of a server, for people."""

    title: str | None = None
    description: str | None = None
    website_url: str | None = None
    icons: list[Icon] | None = None
