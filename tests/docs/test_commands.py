"""The ``curl`` commands of the documents print what the documents say.

The commands of a page are run in their order against one server: the one that the page starts first, else
`examples/hub.py`. A text block behind them is what the last of them prints; ``…`` in it stands for anything.
"""

import asyncio
import re
from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path
from typing import NamedTuple

import pytest

from processes import free_port, millstream, serving
from scripts.docs import ROOT, blocks, documents
from seeds.programs import Program, browser_script, running

pytestmark = pytest.mark.server
SECONDS = 5.0


class Shown(NamedTuple):
    """A command, and what it prints where the page says so."""

    command: str
    printed: str


def shown(page: Path) -> list[Shown]:
    """The commands of a page."""
    found: list[Shown] = []
    here = list(blocks(page.read_text("utf-8")))
    for block, behind in zip_longest(here, here[1:]):
        commands = [line for line in block.body.splitlines() if line.startswith("curl ")]
        if block.language != "sh" or not commands:
            continue
        printed = behind.body.strip() if behind is not None and behind.language == "text" else ""
        found += [Shown(command, "") for command in commands[:-1]] + [Shown(commands[-1], printed)]
    return found


def started(page: Path) -> str:
    """The file that the first command of the page serves."""
    found = re.search(r"^(?:\S*/)?millstream run (\S+)$", page.read_text("utf-8"), re.MULTILINE)
    return found[1] if found is not None else "examples/hub.py"


PAGES = [pytest.param(page, id=str(page.relative_to(ROOT))) for page in documents() if shown(page)]


@pytest.mark.parametrize("page", PAGES)
async def test_commands_print_what_the_page_says(page: Path, tmp_path: Path) -> None:
    """STYLE 37: every example is run by a test."""
    port = free_port()
    with serving(millstream(started(page), port), port, tmp_path / "log"):
        for each in shown(page):
            command = each.command.replace("127.0.0.1:8000", f"127.0.0.1:{port}")
            async with running("bash", "-c", f"exec {command}") as program:
                await expect(program, each, port)


async def expect(program: Program, wanted: Shown, port: int) -> None:
    """Read what a command prints until it is what the page shows; any output will do where the page shows none."""
    text = wanted.printed.replace("127.0.0.1:8000", f"127.0.0.1:{port}")
    pattern = re.compile(".*?".join(map(re.escape, text.split("…"))) if text else ".+", re.DOTALL)
    try:
        async with asyncio.timeout(SECONDS):
            while pattern.fullmatch("".join(program.lines).strip()) is None:
                await program.line()
    except (TimeoutError, AssertionError) as exc:
        printed = "".join(program.lines)
        raise AssertionError(f"{wanted.command}\nprinted:\n{printed}\nand the page says:\n{text}") from exc


@pytest.fixture(scope="module")
def rooms(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """`examples/rooms.py`, started; its port."""
    port = free_port()
    with serving(millstream("examples/rooms.py", port), port, tmp_path_factory.mktemp("rooms") / "log"):
        yield port


async def test_the_script_of_a_page_hears_what_it_posts_and_who_came(rooms: int) -> None:
    """docs/how-to/live-chat.md: the three parts of the script, run as they stand."""
    source = (ROOT / "examples" / "rooms.js").read_text("utf-8").replace("127.0.0.1:8000", f"127.0.0.1:{rooms}")
    async with browser_script(source, rooms) as page:
        await page.until(lambda line: line == "Ada: Good morning\n")
