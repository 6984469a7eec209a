"""What a server says about itself."""

from msgspec import Struct

from millstream._protocol.content import Icon
from millstream._protocol.suggesting import Suggesting


class Info(Struct, frozen=True, omit_defaults=True, rename="camel", metaclass=Suggesting):
    """What people read about a server: ``Server("shop", info=Info(title="The shop"))``."""

    title: str | None = None
    description: str | None = None
    website_url: str | None = None
    icons: list[Icon] | None = None
