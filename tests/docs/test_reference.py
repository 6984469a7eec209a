"""The reference pages name everything there is."""

import inspect
from typing import Any

import pytest
from typer.main import get_command

from millstream import Context
from millstream.cli.run import app
from millstream.config import Settings
from scripts.docs import ROOT

REFERENCE = ROOT / "docs" / "reference"


def rows(page: str) -> dict[str, list[str]]:
    """Rows of the tables of a page, by the first code word of their first cell."""
    found: dict[str, list[str]] = {}
    for line in (REFERENCE / page).read_text("utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split(" | ")]
        if line.startswith("| `"):
            found[cells[0].split("`")[1]] = cells
    return found


def written(value: Any) -> str:
    """A default as the page shows it."""
    if value in ((), ""):
        return "empty"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    return f"`{value:g}`" if isinstance(value, float) else f"`{value}`"


def test_every_setting_is_listed_with_its_default() -> None:
    """Settings are read by people who run servers, not by those who wrote them."""
    listed = {name: cells[1] for name, cells in rows("settings.md").items()}
    assert listed == {name: written(getattr(Settings(), name)) for name in Settings.__struct_fields__}


def test_every_option_of_run_is_listed() -> None:
    """The command and its page say the same."""
    command = get_command(app)
    run = command.commands["run"]  # type: ignore[attr-defined] # the command is a group
    options = {option for parameter in run.params for option in parameter.opts if option.startswith("--")}
    assert options == {name for name in rows("cli.md") if name.startswith("--")}


@pytest.mark.parametrize("name", [name for name, _ in inspect.getmembers(Context) if not name.startswith("_")])
def test_every_member_of_the_context_is_listed(name: str) -> None:
    """What is not listed is not found."""
    text = (REFERENCE / "context.md").read_text("utf-8")
    assert f"ctx.{name}" in text or (name in ("debug", "info", "warning", "error") and f"/{name}" in text)
