"""The parts that the application brings along. `part_table` lists them."""

from collections.abc import Collection

from millstream._app.definition import Definition


class OwnPart:
    """A part that's made for each start of a server. The host's stack closes what it opens."""

    needs: Collection[str] = ()

    def __init__(self, definition: Definition) -> None:
        self.definition: Definition = definition

    async def close(self) -> None:
        """Do nothing."""
