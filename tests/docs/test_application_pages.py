"""The pages about applications and recordings: each command, in its order, in a folder with the bookshop in it."""

import asyncio
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from docs_world import shown
from millstream._cli.commands.install import place_of
from millstream._cli.installing.applications import APPLICATIONS, System
from patience import WAIT
from processes import ROOT

PAGES = ["install-in-applications.md", "record-and-replay.md"]


@pytest.mark.server
@pytest.mark.parametrize("name", PAGES)
async def test_the_commands_of_a_page_do_what_it_says(name: str, tmp_path: Path) -> None:
    """The questions that they ask are answered with yes."""
    (tmp_path / "bookshop.py").write_text((ROOT / "examples" / "bookshop.py").read_text("utf-8"), "utf-8")
    (tmp_path / "shop.env").write_text("SHOP_KEY=other\n", "utf-8")
    environment = {**os.environ, "HOME": str(tmp_path), "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    for each in shown(ROOT / "docs" / "how-to" / name):
        words = shlex.split(each.command)
        if words[:2] == ["millstream", "install"] and not {"--dry-run", "--yes", "json"} & set(words):
            words.append("--yes")
        process = await asyncio.create_subprocess_exec(
            *words,
            cwd=tmp_path,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        async with asyncio.timeout(WAIT):
            printed, errors = await process.communicate()
        assert process.returncode == 0, (each.command, errors.decode())
        assert printed
        if each.printed:
            assert printed.decode().strip() == each.printed
    if name == PAGES[0]:
        assert "books" in (tmp_path / ".cursor" / "mcp.json").read_text("utf-8")
        assert not (tmp_path / ".vscode").exists()


@pytest.mark.parametrize("key", APPLICATIONS)
def test_the_files_of_applications_are_listed_as_they_are(key: str) -> None:
    """People look there when something is wrong."""
    text = (ROOT / "docs" / "how-to" / "install-in-applications.md").read_text("utf-8")
    line = next(line for line in text.splitlines() if line.startswith(f"| `{key}` "))
    _, _, linux, macos, windows, project, _ = (cell.strip() for cell in line.split("|"))
    for kind, cell in (("linux", linux), ("macos", macos), ("windows", windows)):
        shown_as = linux if cell == "the same" else cell
        system = System(kind=kind, home=Path("~"), variables={"APPDATA": "%APPDATA%"})
        place = str(APPLICATIONS[key].place(system))
        assert shown_as.startswith(f"`{place}`") or shown_as == f"`{place.replace('/', chr(92))}`"
    assert project == (f"`{APPLICATIONS[key].project}`" if APPLICATIONS[key].project else "")
    assert place_of(key, project=False)[1] is APPLICATIONS[key]
