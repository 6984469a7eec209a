"""The built-in parts. `part_table` lists them."""

from collections.abc import Collection

from millstream._app.definition import Definition


class OwnPart:
    """A part that is created for each start of a server. The host's exit stack closes what it opens."""

    needs: Collection[str] = ()

    def __init__(self, definition: Definition) -> None:
        self.definition: Definition = definition

    async def close(self) -> None:
        """Do nothing."""
