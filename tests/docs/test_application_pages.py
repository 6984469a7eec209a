from pathlib import Path

import pytest

from cases import for_each
from millstream._cli.install import place_of
from millstream.client._applications import APPLICATIONS, System
from processes import ROOT

pytestmark = pytest.mark.check


@for_each("key", APPLICATIONS)
def test_application_files_are_listed(key: str) -> None:
    text = (ROOT / "docs" / "guides" / "connect-a-client.md").read_text("utf-8")
    line = next(line for line in text.splitlines() if line.startswith(f"| `{key}` "))
    _, _, linux, macos, windows, project, _ = (cell.strip() for cell in line.split("|"))
    for kind, cell in (("linux", linux), ("macos", macos), ("windows", windows)):
        shown_as = linux if cell == "the same" else cell
        system = System(kind=kind, home=Path("~"), variables={"APPDATA": "%APPDATA%"})
        place = str(APPLICATIONS[key].place(system))
        assert shown_as.startswith(f"`{place}`") or shown_as == f"`{place.replace('/', chr(92))}`"
    assert project == (f"`{APPLICATIONS[key].project}`" if APPLICATIONS[key].project else "")
    assert place_of(key, project=False)[1] is APPLICATIONS[key]


def test_comparison_has_the_number_of_applications() -> None:
    text = (ROOT / "docs" / "comparison.md").read_text("utf-8")
    assert ("| `install` into applications | ten |" in text, len(APPLICATIONS)) == (True, 10)
