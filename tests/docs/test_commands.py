"""The ``curl`` commands of the documents print what the documents say.

The commands of a page are run in their order against one server: the one that the page starts first, else
`examples/hub.py`. A text block behind them is what the last of them prints; ``…`` in it stands for anything.
"""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from docs_world import Shown, expect, shown, started
from processes import Shared, free_port, millstream, serving, shared
from scripts.docs import ROOT, documents
from seeds.programs import browser_script, running

pytestmark = pytest.mark.server


def calls(page: Path) -> list[Shown]:
    """The curl commands of a page, and what they print."""
    return [each for each in shown(page) if each.command.startswith("curl ")]


PAGES = [pytest.param(page, id=str(page.relative_to(ROOT))) for page in documents() if calls(page)]


@pytest.mark.parametrize("page", PAGES)
async def test_commands_print_what_the_page_says(page: Path, tmp_path: Path) -> None:
    """Our choice: a command that nobody runs is wrong sooner or later."""
    port = free_port()
    with serving(millstream(started(page), port), port, tmp_path / "log"):
        for each in calls(page):
            command = each.command.replace("127.0.0.1:8000", f"127.0.0.1:{port}")
            async with running("bash", "-c", f"exec {command}") as program:
                await expect(program, each, port)


@pytest.fixture(scope="module")
def shared_rooms(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shared]:
    """`examples/rooms.py`, started."""
    with shared(partial(millstream, "examples/rooms.py"), tmp_path_factory.mktemp("rooms")) as server:
        yield server


@pytest.fixture
def rooms(shared_rooms: Shared) -> int:
    """The port of the rooms."""
    return shared_rooms.port()


async def test_the_script_of_a_page_hears_what_it_posts_and_who_came(rooms: int) -> None:
    """docs/how-to/live-chat.md: the three parts of the script, run as they stand."""
    source = (ROOT / "examples" / "rooms.js").read_text("utf-8").replace("127.0.0.1:8000", f"127.0.0.1:{rooms}")
    async with browser_script(source, rooms) as page:
        await page.until(lambda line: line == "Ada: Good morning\n")
