"""What the tests of the documents share: the commands of a page, and what the page says they print."""

import asyncio
import re
from itertools import zip_longest
from pathlib import Path
from typing import NamedTuple

from patience import WAIT
from scripts.docs import blocks
from seeds.programs import Program


class Shown(NamedTuple):
    """A command, and what it prints where the page says so."""

    command: str
    printed: str


def shown(page: Path) -> list[Shown]:
    """Every line of the shell blocks of a page. A text block behind a shell block is what its last line prints."""
    found: list[Shown] = []
    here = list(blocks(page.read_text("utf-8")))
    for block, behind in zip_longest(here, here[1:]):
        if block.language != "sh":
            continue
        *commands, last = block.body.splitlines()
        printed = behind.body.strip() if behind is not None and behind.language == "text" else ""
        found += [Shown(command, "") for command in commands] + [Shown(last, printed)]
    return found


def started(page: Path) -> str:
    """The file that the first command of the page serves. Without a folder, it is one that you write."""
    found = re.search(r"^(?:\S*/)?millstream run (\S+)$", page.read_text("utf-8"), re.MULTILINE)
    target = found[1] if found is not None else "examples/hub.py"
    return target if "/" in target else f"examples/{target}"


async def expect(program: Program, wanted: Shown, port: int) -> None:
    """Read what a command prints until it is what the page shows; any output will do where the page shows none."""
    text = wanted.printed.replace("127.0.0.1:8000", f"127.0.0.1:{port}")
    pattern = re.compile(".*?".join(map(re.escape, text.split("…"))) if text else ".+", re.DOTALL)
    try:
        async with asyncio.timeout(WAIT):
            while pattern.fullmatch("".join(program.lines).strip()) is None:
                await program.line()
    except (TimeoutError, AssertionError) as exc:
        printed = "".join(program.lines)
        raise AssertionError(f"{wanted.command}\nprinted:\n{printed}\nand the page says:\n{text}") from exc
